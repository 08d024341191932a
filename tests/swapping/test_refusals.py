"""What a swap refuses, with its facts, and that it leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn

import ensexport
from ensexport.errors import (
    ArtifactError,
    MismatchError,
    OutputError,
    StackError,
    TargetExistsError,
    UsageError,
    WeightRangeError,
)
from ensexport.recipe.coding import decode, encode
from ensexport.runtime.runner import METADATA_KEY
from ensexport.spec import Tolerance
from ensexport.swapping.run import SwapFile, swap, swap_files
from ensexport.targets import onnx as onnx_target
from ensexport.targets.onnx_file import lay_out
from tests.swapping.nets import NETS, ConvNet, Net, Scaled, mlp

QUICK = {"batches": (2,), "seeds": (0,)}


def _packed(net: Net, folder: Path, name: str) -> Path:
    for index in range(net.n_members):
        net.save(folder / "ckpts" / f"s{index}.pt", index)
    net.save(folder / "new" / "n.pt", 99)
    members = ensexport.load_members(folder / "ckpts", model=net.build)
    ensexport.export(members, folder / name, inputs=net.inputs, **QUICK, **net.options)
    return folder


@pytest.fixture(scope="module")
def mlps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _packed(NETS["mlp"], tmp_path_factory.mktemp("mlps"), "e.onnx")


@pytest.fixture
def folder(mlps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(mlps, tmp_path / "own"))


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _refused(folder: Path, kind: type[Exception], message: str, **given: Any) -> None:
    arguments = {"artifact": "e.onnx", "member_index": 1, "checkpoint": "new/n.pt", "output": "out.onnx", "model": mlp}
    arguments |= given
    for name in ("artifact", "checkpoint", "output"):
        arguments[name] = folder / arguments[name]
    before = _files(folder)
    with pytest.raises(kind, match=message):
        swap(**arguments)
    assert _files(folder) == before


@pytest.mark.parametrize("member", [3, -1, 99])
def test_a_member_that_is_not_there(folder: Path, member: int) -> None:
    _refused(folder, UsageError, rf"there is no member {member} in '.*': expected 0 to 2", member_index=member)


def test_another_format(folder: Path) -> None:
    _refused(
        folder, UsageError, r"cannot write '.*out\.ts': expected the format of '.*e\.onnx', \.onnx", output="out.ts"
    )


def test_a_folder_of_several_checkpoints(folder: Path) -> None:
    _refused(folder, UsageError, "3 members were found in the checkpoint: expected one", checkpoint="ckpts")


def test_an_output_that_exists(folder: Path) -> None:
    (folder / "out.onnx").write_text("mine")
    _refused(folder, TargetExistsError, r"cannot write '.*out\.onnx': it exists")
    _refused(folder, TargetExistsError, r"cannot write '.*e\.onnx': it exists", output="e.onnx")


def test_an_output_in_no_folder(folder: Path) -> None:
    _refused(folder, OutputError, "does not exist", output="nowhere/out.onnx")


def test_an_artifact_that_is_missing(folder: Path) -> None:
    _refused(folder, ArtifactError, r"cannot read '.*gone\.onnx': there is no such file", artifact="gone.onnx")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)),
            r"cannot swap '0\.weight': expected shape \(8, 4\) as in the file, got \(9, 4\) in member 1 \(.*n\.pt\)",
            id="shape",
        ),
        pytest.param(
            lambda: nn.Sequential(nn.Linear(4, 8), nn.Identity(), nn.ReLU(), nn.Linear(8, 3)),
            r"cannot swap '1\.weight': expected shape \(8,\) as in the file, got no such tensor in member 1",
            id="missing",
        ),
        pytest.param(
            lambda: mlp().double(),
            r"cannot swap '0\.weight': expected float32 as in the members that were packed, got float64 in member 1",
            id="dtype",
        ),
    ],
)
def test_a_checkpoint_of_another_architecture(folder: Path, build: Callable[[], nn.Module], message: str) -> None:
    torch.save(build().state_dict(), folder / "new" / "n.pt")
    _refused(folder, StackError, message, model=build)


def test_a_checkpoint_that_does_not_fit_its_architecture(folder: Path) -> None:
    torch.save(ConvNet().state_dict(), folder / "new" / "n.pt")
    _refused(folder, StackError, "first.weight|0.weight")


def test_an_architecture_that_computes_something_else(folder: Path) -> None:
    """The checkpoint fits, and the file is not what the given code makes of it."""

    def other() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))

    _refused(folder, MismatchError, r"differs from the baseline: .* at member 1 \(.*n\.pt\)", model=other)


def test_an_architecture_with_another_number_of_outputs(folder: Path) -> None:
    class Two(nn.Sequential):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            y = super().forward(x)
            return y, y + 1

    _refused(
        folder,
        ArtifactError,
        r"has the outputs output, and the model returns output_0, output_1",
        model=lambda: Two(*mlp()),
    )


def test_a_bound_that_nothing_meets(folder: Path) -> None:
    _refused(folder, MismatchError, "differs from the baseline", tolerance=Tolerance(0.0, 0.0))


def test_a_tensor_that_is_kept_once_for_all(tmp_path: Path) -> None:
    _packed(NETS["buffers"], tmp_path, "e.ts")
    state = torch.load(tmp_path / "new" / "n.pt", weights_only=True)
    torch.save({**state, "mean": state["mean"] + 1}, tmp_path / "new" / "n.pt")
    _refused(
        tmp_path,
        StackError,
        r"cannot swap member 1: 'mean' was equal in all members and is kept once for all, and member 1 \(.*n\.pt\) has "
        r"another value for it\. Pack again with all checkpoints",
        artifact="e.ts",
        output="out.ts",
        model=Scaled,
    )


def test_a_weight_beyond_the_range_of_the_file(tmp_path: Path) -> None:
    net = NETS["float16"]
    _packed(net, tmp_path, "e.ts")
    state = torch.load(tmp_path / "new" / "n.pt", weights_only=True)
    state["head.weight"][0, 0] = 1e6
    torch.save(state, tmp_path / "new" / "n.pt")
    _refused(
        tmp_path,
        WeightRangeError,
        r"member 1: 'head\.weight.*' holds 1e\+06, beyond the largest float16",
        artifact="e.ts",
        output="out.ts",
        model=ConvNet,
    )


def _change_metadata(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    metadata = json.loads(entry.value)
    change(metadata)
    entry.value = json.dumps(metadata, sort_keys=True)
    onnx.save(model, path)


def _change_recipe(path: Path, change: Callable[[Any], None]) -> None:
    def within(metadata: dict[str, Any]) -> None:
        recipe = decode(metadata["recipe"])
        change(recipe)
        del recipe["version"]
        metadata["recipe"] = encode(recipe)

    _change_metadata(path, within)


def test_a_file_without_a_recipe(folder: Path) -> None:
    _change_metadata(folder / "e.onnx", lambda metadata: metadata.pop("recipe"))
    _refused(folder, ArtifactError, r"carries no recipe of its weights, .* Pack again with this version")


def test_a_file_whose_recipe_could_not_be_written(folder: Path) -> None:
    def without(recipe: Any) -> None:
        del recipe["weights"]
        recipe["no_weights"] = "cannot write aten.strange.default"

    _change_recipe(folder / "e.onnx", without)
    _refused(folder, ArtifactError, r"could not be written down: cannot write aten\.strange\.default")


@pytest.mark.parametrize("text", [3, "", "????", "AAAA"], ids=["number", "empty", "no-letters", "no-recipe"])
def test_a_recipe_that_is_none(folder: Path, text: object) -> None:
    _change_metadata(folder / "e.onnx", lambda metadata: metadata.__setitem__("recipe", text))
    _refused(folder, ArtifactError, r"cannot swap a member of '.*e\.onnx'")


def test_a_recipe_that_asks_for_files(folder: Path) -> None:
    (folder / "secret").write_bytes(bytes(128))

    def read_a_file(recipe: Any) -> None:
        node = recipe["weights"]["graph"]["nodes"][-1]
        node["target"], node["args"], node["kwargs"] = "aten.from_file.default", [str(folder / "secret")], {}

    _change_recipe(folder / "e.onnx", read_a_file)
    _refused(folder, ArtifactError, r"'aten\.from_file\.default' is none of the ops that a file may hold")


def test_a_recipe_whose_ops_do_not_run(folder: Path) -> None:
    def wrong_dims(recipe: Any) -> None:
        for node in recipe["weights"]["graph"]["nodes"]:
            if node["op"] == "call" and node["target"] == "aten.permute.default":
                node["args"][1] = [7, 8]

    _change_recipe(folder / "e.onnx", wrong_dims)
    _refused(folder, ArtifactError, "its recipe cannot be run: .*Dimension out of range")


def test_a_recipe_that_makes_other_sizes_than_it_says(folder: Path) -> None:
    def lie(recipe: Any) -> None:
        for node in recipe["weights"]["graph"]["nodes"]:
            if node["op"] == "call" and node["target"] == "aten.permute.default":
                node["target"], node["args"] = "aten.select.int", [node["args"][0], 0, 0]

    _change_recipe(folder / "e.onnx", lie)
    _refused(folder, ArtifactError, "its recipe makes .* bytes for '3.weight'")


def test_a_recipe_that_does_not_fit_the_file(folder: Path) -> None:
    _change_metadata(folder / "e.onnx", lambda m: m.update(n_members=2, members=m["members"][:2]))
    _refused(folder, ArtifactError, r"its recipe does not fit it: expected \d+ bytes for '.*', got \d+", member_index=0)


def test_a_recipe_that_mixes_the_weights_up_fails_the_proof(folder: Path) -> None:
    def swapped(recipe: Any) -> None:
        for node in recipe["weights"]["graph"]["nodes"]:
            if node["op"] == "call" and node["target"] == "aten.rsqrt.default":
                node["target"] = "aten.sqrt.default"

    _change_recipe(folder / "e.onnx", swapped)
    _refused(folder, MismatchError, r"differs from the baseline: .* at member 1 \(.*n\.pt\)")


def test_several_files_of_one_package_are_swapped_together(folder: Path) -> None:
    """The parts of a package are written where they are staged, and put in place by whoever asked."""
    members = ensexport.load_members(folder / "ckpts", model=mlp)
    ensexport.export(members, folder / "e.ts", inputs=NETS["mlp"].inputs, **QUICK)
    (folder / "staged").mkdir()
    files = [SwapFile(folder / name, folder / "staged" / name, Path(name)) for name in ("e.onnx", "e.ts")]
    done = swap_files(files, 2, ensexport.load_members(folder / "new" / "n.pt", model=mlp))
    assert {check.artifact for check in done.validation.checks} == {"e.onnx", "e.ts"}
    assert (done.member["name"], done.replaced["name"]) == ("n.pt", "s2.pt")
    for name in ("e.onnx", "e.ts"):
        swap(folder / name, 2, folder / "new" / "n.pt", folder / f"one_{name}", model=mlp)
        assert (folder / "staged" / name).read_bytes() == (folder / f"one_{name}").read_bytes()


def test_what_stands_behind_the_graph_and_is_no_metadata(folder: Path) -> None:
    path = folder / "e.onnx"
    path.write_bytes(path.read_bytes() + b"\x72\x02\xff\xff")  # a field of metadata that does not end
    _refused(folder, ArtifactError, r"cannot read '.*e\.onnx' as ONNX")


def test_weights_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        onnx_target, "lay_out", lambda model, weights, name, **_: lay_out(model, weights, name, max_bytes=64)
    )
    _packed(NETS["mlp"], tmp_path, "e.onnx")
    model = onnx.load(tmp_path / "e.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "other.data"
    onnx.save(model, tmp_path / "e.onnx")
    shutil.copy(tmp_path / "e.onnx.data", tmp_path / "other.data")
    _refused(tmp_path, ArtifactError, r"its weights lie in several files \(other\.data, e\.onnx\.data \.\.\.\)")
