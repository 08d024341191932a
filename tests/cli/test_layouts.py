"""A folder of members as each tool leaves it: `inspect` explains it, and `pack` packs it given `--model` alone."""

import warnings

import numpy as np
import pytest
import torch

from tests.cli.projects import run
from tests.members.writers import ENSEMBLES, LAYOUTS, deepspeed_zero3, raw_of, tiny_net
from tests.zoo.stubs import declare_if_needed

MODEL = """
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
"""
READ = ("ckpts", "--model", "model.py:net")
X = "x:float32[batch,1,3,3]"
HERE = sorted(name for name, layout in LAYOUTS.items() if not layout.needs)
WITH_LIBRARY = sorted(name for name, layout in LAYOUTS.items() if layout.needs and "transformers" not in layout.needs)
SAFE = [name for name in HERE if not LAYOUTS[name].asks_for_code]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "ckpts").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ckpts"


pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # importing torch's compiler


def members(name):
    nets = [tiny_net(seed).eval() for seed in range(3)]
    return [net.half().float() for net in nets] if name == "ultralytics" else nets


def assert_packed(nets, *options):
    """Pack, and compare the file with the networks that were written, without ensexport's own proof."""
    result = run("pack", *READ, "--input", X, "-o", "e.ts", *options, "--json")
    assert result.exit_code == 0, result.out
    x = np.random.default_rng(0).standard_normal((4, 1, 3, 3), dtype=np.float32)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        output = torch.jit.load("e.ts")(torch.from_numpy(x)).numpy()
        expected = torch.stack([net(torch.from_numpy(x)) for net in nets]).numpy()
    assert output.shape == expected.shape
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    return result.answer


@pytest.fixture(scope="module")
def operators():
    """torchvision's operators, where its build does not fit torch's; timm and lightning import it."""
    library = declare_if_needed()
    yield
    del library


@pytest.mark.parametrize("name", [*SAFE, *(pytest.param(name, marks=pytest.mark.zoo) for name in WITH_LIBRARY)])
@pytest.mark.filterwarnings("ignore")  # of the libraries, which differ by their versions
def test_members_as_a_tool_writes_them_are_explained_and_packed(folder, name, request):
    layout, nets = LAYOUTS[name], members(name)
    if layout.needs:
        request.getfixturevalue("operators")
    for library in layout.needs:
        pytest.importorskip(library, reason=f"needs {library}, which the tests do not install")
    for index, net in enumerate(nets):
        layout.write(folder, net, index)
    looked = run("inspect", *READ, "--json")
    assert looked.exit_code == 0, looked.out
    found = looked.answer["members"]
    assert [member["index"] for member in found] == [0, 1, 2]
    assert {member["container_key"] for member in found} == {layout.container_key}
    assert {member["stripped_prefix"] for member in found} == {layout.prefix}
    assert not [warning for warning in looked.answer["warnings"] if "identical" in warning]
    answer = assert_packed(nets)
    assert [member["sha256"] for member in answer["members"]] == [member["sha256"] for member in found]


@pytest.mark.parametrize("name", sorted(ENSEMBLES))
def test_all_members_in_one_file_are_explained_and_packed(folder, name):
    nets = members(name)
    ENSEMBLES[name](folder, nets)
    looked = run("inspect", *READ, "--json")
    assert looked.exit_code == 0, looked.out
    assert [member["part"] for member in looked.answer["members"]] == [0, 1, 2]
    assert_packed(nets)
    text = run("inspect", *READ).out
    assert "members (3)" in text
    assert "number 2 in the file" in text


@pytest.mark.parametrize("name", sorted(set(HERE) - set(SAFE)))
def test_members_that_need_code_are_refused_with_what_they_ask_for(folder, name):
    for index, net in enumerate(members(name)):
        LAYOUTS[name].write(folder, net, index)
    looked = run("inspect", *READ, "--json")
    assert (looked.exit_code, looked.answer["error"]["code"]) == (3, "E_UNSAFE_CHECKPOINT")
    assert looked.answer["error"]["blocked"]
    assert "--allow-pickle" in looked.answer["error"]["hint"]


@pytest.mark.parametrize("name", ["whole-module", "ultralytics"])
def test_pickled_modules_are_packed_where_the_user_trusts_them(folder, name):
    nets = members(name)
    for index, net in enumerate(nets):
        LAYOUTS[name].write(folder, net, index)
    looked = run("inspect", *READ, "--allow-pickle", "--json")
    assert looked.exit_code == 0, looked.out
    assert len(looked.answer["members"]) == 3


@pytest.mark.parametrize("name", ["torchvision", "mmengine-published"])
def test_the_raw_weights_can_be_asked_for(folder, name):
    nets = members(name)
    for index, net in enumerate(nets):
        LAYOUTS[name].write(folder, net, index)
    assert_packed([raw_of(net).eval() for net in nets], "--weights", "raw")


def test_what_cannot_be_read_whole_says_what_to_run_first(folder):
    deepspeed_zero3(folder, tiny_net(0), 0)
    looked = run("inspect", *READ)
    assert looked.exit_code == 3
    assert "zero_to_fp32" in looked.err
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    looked = run("inspect", *READ)
    assert looked.exit_code == 3
    assert "merge_and_unload" in looked.err
