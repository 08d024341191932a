"""Buffers bound on the device: here the CPU, where all but CUDA graphs runs."""

import numpy as np
import pytest

from ensexport.bench.bound import loop_bound, packed_bound
from ensexport.bench.files import write_member_files
from ensexport.bench.session_loops import loop
from ensexport.members import load_members
from ensexport.spec import parse_inputs
from ensexport.timing.graphs import onnx as graph
from tests.bench.test_run import TWO_INPUTS
from tests.cli.projects import make_project, run

INPUTS = ["x:float32[batch,4]", "bias:float32[batch,3]"]


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job for a packed file and its members' own, with a shared and a per-member input."""
    monkeypatch.chdir(make_project(tmp_path / "project", TWO_INPUTS))
    options = ("--input", INPUTS[0], "--input", INPUTS[1], "--per-member", "bias", "--output-names", "y,total")
    assert run("pack", "ckpts", "--model", "model.py:Net", *options, "-o", "e.onnx").exit_code == 0
    write_member_files(load_members("ckpts", "model.py:Net"), parse_inputs(INPUTS), ["y", "total"], tmp_path)
    return {
        "path": "e.onnx", "provider": "cpu", "outputs": ["y", "total"], "per_member": ["bias"], "n_members": 3,
        "member_paths": [str(tmp_path / f"member_{k}.onnx") for k in range(3)],
    }  # fmt: skip


@pytest.mark.parametrize(("bound", "plain"), [(packed_bound, graph), (loop_bound, loop)], ids=["packed", "loop"])
def test_bound_runs_follow_their_inputs(job, bound, plain):
    runs, reference = bound(job), plain(job)
    random = np.random.default_rng(0)
    for batch in (2, 2, 5, 2):
        feed = {
            "x": random.standard_normal((batch, 4), dtype=np.float32),
            "bias": random.standard_normal((3, batch, 3), dtype=np.float32),
        }
        given = {name: array.copy() for name, array in feed.items()}
        expected, actual = reference(feed), runs(feed)
        assert list(actual) == ["y", "total"]
        for name in actual:
            assert actual[name].shape == expected[name].shape
            assert np.allclose(actual[name], expected[name], atol=1e-6)
        assert all(np.array_equal(feed[name], given[name]) for name in feed)


def test_inputs_of_one_shape_stay_where_they_are(job):
    """A CUDA graph replays on the addresses that it was captured with."""
    runs = loop_bound(job)
    feed = {"x": np.ones((2, 4), np.float32), "bias": np.ones((3, 2, 3), np.float32)}
    runs.bind(feed)()
    (ready,) = runs._ready.values()
    before = [value.data_ptr() for own in (*ready.inputs, *ready.outputs) for value in own.values()]
    step = runs.bind({name: 2 * array for name, array in feed.items()})
    step()
    (ready,) = runs._ready.values()
    assert [value.data_ptr() for own in (*ready.inputs, *ready.outputs) for value in own.values()] == before
    assert ready.inputs[1]["x"].numpy().tolist() == [[2.0] * 4] * 2
    assert ready.inputs[0]["x"] is ready.inputs[2]["x"]  # shared: one copy on the device
    assert len({own["bias"].data_ptr() for own in ready.inputs}) == 3
