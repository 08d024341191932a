"""The tutorial's recipe: what it computes, and what torch.onnx.export makes of it."""

import numpy as np
import onnx
import pytest
import torch

from ensexport.bench.compiled import vmap as compiled
from ensexport.bench.torch_loops import loop
from ensexport.bench.vmapped import Vmapped, export_vmapped
from ensexport.errors import ExportError
from ensexport.members import load_members
from ensexport.runtime.onnx_runner import OnnxRunner
from tests.cli.projects import make_project

DICT = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x, *, bias):
        y = self.layer(x) * self.scale + bias
        return {"y": y, "size": y.abs().sum(1)}
"""
LIST = DICT.replace('{"y": y, "size": y.abs().sum(1)}', '[{"y": y}, y.abs().sum(1)]')


def feed_of(batch):
    random = np.random.default_rng(batch)
    return {
        "x": random.standard_normal((batch, 4), dtype=np.float32),
        "bias": random.standard_normal((3, batch, 3), dtype=np.float32),
    }


@pytest.fixture(params=[DICT, LIST], ids=["dict", "list"])
def job(request, tmp_path, monkeypatch):
    monkeypatch.chdir(make_project(tmp_path / "project", request.param))
    return {
        "checkpoints": ["ckpts"], "model": "model.py:Net", "model_args": {}, "base_dir": None, "provider": "cpu",
        "selection": {}, "trust": {}, "allow_nonfinite": False, "n_members": 3,
        "inputs": ["x", "bias"], "per_member": ["bias"], "outputs": ["y", "size"],
    }  # fmt: skip


def test_it_computes_what_the_loop_does(job, tmp_path):
    members = load_members("ckpts", "model.py:Net")
    module = Vmapped(members, job["inputs"], job["per_member"])
    feed = feed_of(2)
    expected = loop(job)(feed)
    outputs = module(*map(torch.from_numpy, feed.values()))
    for name, value in zip(job["outputs"], outputs, strict=True):
        assert np.allclose(value, expected[name], atol=1e-5)
    path = tmp_path / "vmap.onnx"
    export_vmapped(module, path, feed, job["outputs"], opset=20)
    exported = OnnxRunner(path).run(feed)
    for name in job["outputs"]:
        assert np.allclose(exported[name], expected[name], atol=1e-5)
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 2


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # by torch's own modules, when they are imported
@pytest.mark.parametrize("job", [DICT], indirect=True, ids=["dict"])
def test_it_is_compiled_whole(job):
    run, feed = compiled(job), feed_of(2)
    expected, actual = loop(job)(feed), run(feed)
    for name in job["outputs"]:
        assert np.allclose(actual[name], expected[name], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # by torch's own modules, when they are imported
@pytest.mark.parametrize("job", [LIST], indirect=True, ids=["list"])
def test_what_is_not_compiled_is_not_measured_as_if_it_were(job, monkeypatch):
    torch._dynamo.utils.counters.clear()
    with pytest.raises(ExportError, match="compiles nothing of it"):
        compiled(job)(feed_of(2))


def test_what_cannot_be_exported_is_said_in_torchs_words(tmp_path):
    make_project(tmp_path / "project", DICT)
    members = load_members(tmp_path / "project" / "ckpts", f"{tmp_path}/project/model.py:Net")
    module = Vmapped(members, ["x", "bias"], [])
    feed = {name: array[:, :2] for name, array in feed_of(2).items()}
    with pytest.raises(ExportError, match=r"torch\.onnx\.export of the vmapped module fails: .*size"):
        export_vmapped(module, tmp_path / "vmap.onnx", feed, ["y", "size"], opset=20)
