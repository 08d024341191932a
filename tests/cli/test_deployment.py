"""What was packed runs where ensexport is not: a convnet with BatchNorm, in processes that cannot import it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.cli.projects import load_factory, make_project, run

CONVNET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight), nn.init.normal_(module.bias)
                nn.init.normal_(module.running_mean), nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, image):
        x = self.stem(image)
        x = torch.relu(x + self.body(x))
        return self.head(nn.functional.dropout(x.mean((2, 3)), 0.5, self.training))
"""
RUN_ONNX = """
import sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession("e.onnx", providers=["CPUExecutionProvider"])
outputs = {name: session.run(None, {"image": image})[0] for name, image in np.load("inputs.npz").items()}
"""
RUN_TORCHSCRIPT = """
import sys, warnings
import numpy as np, torch
warnings.simplefilter("ignore")
module = torch.jit.load("e.ts")
outputs = {name: module(torch.from_numpy(image)).detach().numpy() for name, image in np.load("inputs.npz").items()}
"""
FINISH = """
np.savez("outputs.npz", **outputs)
assert not any(name.partition(".")[0] == "ensexport" for name in sys.modules), "ensexport was imported"
"""
BATCHES = (1, 2, 5, 64)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("deployment") / "project", CONVNET, n_members=3)
    result = run("pack", folder / "ckpts", "--model", f"{folder}/model.py:Net", "--input", "image:float32[batch,3,8,8]",
                 "-o", folder / "e.onnx", "-o", folder / "e.ts", "--json")  # fmt: skip
    assert result.exit_code == 0, result.out
    assert result.answer["plan"]["fallbacks"] == []
    return folder


@pytest.mark.parametrize("script", [RUN_ONNX, RUN_TORCHSCRIPT], ids=["onnxruntime", "torch.jit.load"])
def test_a_convnet_agrees_with_its_members_where_ensexport_is_not(packed, script):
    random = np.random.default_rng(0)
    images = {str(batch): random.standard_normal((batch, 3, 8, 8), dtype=np.float32) for batch in BATCHES}
    np.savez(packed / "inputs.npz", **images)
    done = subprocess.run([sys.executable, "-I", "-c", script + FINISH], cwd=packed, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with np.load(packed / "outputs.npz") as outputs:
        for name, image in images.items():
            assert np.allclose(outputs[name], loop(packed, image), atol=1e-5)


def loop(folder, image):
    results = []
    for index in range(3):
        member = load_factory(CONVNET)()
        member.load_state_dict(torch.load(folder / "ckpts" / f"m{index}.pt", weights_only=True))
        with torch.no_grad():
            results.append(member.eval()(torch.from_numpy(image)).numpy())
    return np.stack(results)


def test_the_dynamic_batch_has_its_name_in_the_file(packed):
    import onnx

    model = onnx.load(packed / "e.onnx")
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [["batch", 3, 8, 8], [3, "batch", 5]]
    assert json.loads(run("validate", packed / "e.onnx", packed / "ckpts", "--model", f"{packed}/model.py:Net",
                          "--json").out)["ok"]  # fmt: skip
