"""`extract`: members of packed files equal the members, as graphs and as tensors."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file

import ensexport
from ensexport.errors import ArtifactError, ExportError, LostTensorsError, MismatchError, TargetExistsError, UsageError
from ensexport.extracting.extract import extract
from ensexport.members import load_members
from ensexport.recipe.coding import KEY, decode
from ensexport.recipe.member import kept_names
from ensexport.recipe.state_file import STATE_FILE, write_kept
from ensexport.runtime import read_metadata
from ensexport.targets.onnx_places import find_places
from tests.extracting.nets import CASES, Case, X, assert_equals_member, make_members, mlp, pack

Packed = tuple[Path, list[torch.nn.Module]]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_each_member_comes_back(case: Case, tmp_path: Path) -> None:
    path, members = pack(case, tmp_path)
    for index in case.members:
        state_path = tmp_path / f"m{index}.safetensors"
        report = extract(path, index, onnx=tmp_path / f"m{index}.onnx", state_dict=state_path, partial=True)
        assert report.validation is not None
        assert report.validation.passed
        assert_equals_member(tmp_path / f"m{index}.onnx", members[index], case)
        own, got = members[index].state_dict(), load_file(state_path)
        assert report.state is not None
        assert got.keys() | report.state.lost.keys() == own.keys()
        for name, tensor in got.items():
            assert tensor.dtype == own[name].dtype, name
            assert torch.equal(tensor, own[name]), name
        assert report.state.is_proven == (not report.state.lost)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(CASES["MLP"], tmp_path_factory.mktemp("mlp"))


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack(CASES["residual block"], tmp_path_factory.mktemp("folded"))


def test_it_says_where_it_comes_from_and_is_no_ensemble(packed: Packed, tmp_path: Path) -> None:
    path, _ = packed
    extract(path, 2, onnx=tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    facts = {entry.key: entry.value for entry in model.metadata_props}
    said = json.loads(facts["ensexport_member"])
    assert said["member"]["index"] == 2
    assert said["member"]["name"] == "m2.pt"
    assert len(said["packed"]["sha256"]) == 64
    assert (said["inputs"], said["outputs"]) == (X, ["output"])
    assert str(tmp_path) not in facts["ensexport_member"]
    assert [value.name for value in model.graph.input] == ["x"]
    with pytest.raises(ArtifactError, match=r"member 2 .*taken out of a packed file"):
        read_metadata(tmp_path / "m.onnx")


def test_the_opset_is_the_packed_files(tmp_path: Path) -> None:
    path, _ = pack(Case(mlp, X, options={"opset": 18}), tmp_path)
    extract(path, 0, onnx=tmp_path / "m.onnx")
    assert [entry.version for entry in onnx.load(tmp_path / "m.onnx").opset_import if entry.domain == ""] == [18]


def test_the_bytes_are_the_same_each_time(packed: Packed, tmp_path: Path) -> None:
    path, _ = packed
    written = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        onnx_path, state_path = tmp_path / folder / "m.onnx", tmp_path / folder / "m.safetensors"
        extract(path, 1, onnx=onnx_path, state_dict=state_path)
        written.append((onnx_path.read_bytes(), state_path.read_bytes()))
    assert written[0] == written[1]


def test_lost_tensors_are_refused_by_name_and_reason(folded: Packed, tmp_path: Path) -> None:
    with pytest.raises(
        LostTensorsError, match=r"'body\.0\.weight': it is folded into 'body\.0\.weight.*A package"
    ) as caught:
        extract(folded[0], 1, state_dict=tmp_path / "m.safetensors")
    lost = caught.value.details["lost"]
    assert lost["stem.1.num_batches_tracked"] == "nothing in the graph reads it"
    assert "head.weight" not in lost
    assert not list(tmp_path.iterdir())


def test_partial_writes_the_others_and_warns(folded: Packed, tmp_path: Path) -> None:
    report = extract(folded[0], 1, state_dict=tmp_path / "m.safetensors", partial=True)
    assert load_file(tmp_path / "m.safetensors").keys() == {"head.weight", "head.bias"}
    (warning,) = report.warnings
    assert "NOT in the file" in warning
    assert "'body.0.weight' (it is folded into" in warning


def test_a_package_gives_all_tensors_back(folded: Packed, tmp_path: Path) -> None:
    path, members = folded
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "model.onnx").write_bytes(path.read_bytes())
    loaded = load_members(path.parent / "ckpts", model=CASES["residual block"].build)
    names = kept_names(decode(read_metadata(path)[KEY])["member"])
    assert "head.weight" not in names
    for copy in (package / STATE_FILE, tmp_path / "again"):
        write_kept(copy, loaded, names)
    assert (package / STATE_FILE).read_bytes() == (tmp_path / "again").read_bytes()
    for index, member in enumerate(members):
        report = extract(package, index, state_dict=tmp_path / f"m{index}.safetensors")
        assert report.state is not None
        assert (report.state.is_proven, report.state.kept) == (True, len(names))
        got = load_file(tmp_path / f"m{index}.safetensors")
        assert got.keys() == member.state_dict().keys()
        assert all(torch.equal(tensor, got[name]) for name, tensor in member.state_dict().items())


def test_stacked_modules_keep_their_tensors_too(tmp_path: Path) -> None:
    members = make_members(CASES["residual block"])
    stacked = ensexport.stack(members)
    write_kept(tmp_path / "a", stacked, ["body.0.weight", "body.1.num_batches_tracked"])
    kept = load_file(tmp_path / "a")
    assert kept.keys() == {f"{k}.{n}" for k in range(3) for n in ("body.0.weight", "body.1.num_batches_tracked")}
    assert all(torch.equal(kept[f"{k}.body.0.weight"], m.body[0].weight) for k, m in enumerate(members))


def test_members_of_several_dtypes_get_their_own_back(tmp_path: Path) -> None:
    members = make_members(CASES["MLP"])
    (tmp_path / "ckpts").mkdir()
    for index, member in enumerate(members):
        module = member.half() if index == 1 else member
        torch.save(module.state_dict(), tmp_path / "ckpts" / f"m{index}.pt")
    loaded = load_members(tmp_path / "ckpts", model=mlp, any_float=True)
    ensexport.export(loaded, tmp_path / "e.onnx", inputs=X, batches=(2,), seeds=(0,))
    for index, member in enumerate(members):
        report = extract(tmp_path / "e.onnx", index, state_dict=tmp_path / f"m{index}.safetensors")
        assert report.state is not None
        assert report.state.is_proven
        got = load_file(tmp_path / f"m{index}.safetensors")
        assert {tensor.dtype for tensor in got.values()} == {torch.float16 if index == 1 else torch.float32}
        assert all(torch.equal(tensor, got[name]) for name, tensor in member.state_dict().items())


def test_weights_may_lie_beside_the_file(packed: Packed, tmp_path: Path) -> None:
    path, members = packed
    onnx.save(
        onnx.load(path), tmp_path / "e.onnx", save_as_external_data=True, location="e.onnx.data", size_threshold=0
    )
    report = extract(
        tmp_path / "e.onnx", 2, onnx=tmp_path / "m.onnx", state_dict=tmp_path / "m.safetensors", partial=True
    )
    assert report.state is not None
    assert report.state.is_proven
    assert_equals_member(tmp_path / "m.onnx", members[2], CASES["MLP"])
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert json.loads(facts["ensexport_member"])["packed"].keys() == {"n_members", "sha256", "data_sha256"}


def test_a_model_whose_graph_cannot_be_kept_says_so(packed: Packed, tmp_path: Path) -> None:
    def forget(recipe: dict) -> None:  # type: ignore[type-arg]
        recipe["problem"] = "aten.strange.default is none of the ops that a file may hold."

    _with_recipe(packed[0], tmp_path / "e.onnx", forget)
    with pytest.raises(ExportError, match=r"member 1 out of '.*e\.onnx' as a graph: aten\.strange\.default"):
        extract(tmp_path / "e.onnx", 1, onnx=tmp_path / "m.onnx")
    extract(tmp_path / "e.onnx", 1, state_dict=tmp_path / "m.safetensors")


def _spoil(path: Path, target: Path, change: int) -> None:
    """Change the last number of member 1's first bias."""
    data = bytearray(path.read_bytes())
    place = find_places(path).initializers["0.bias"]
    end = place.offset + place.n_bytes * 2 // 3
    data[end - 2] ^= change
    target.write_bytes(data)


def test_a_weight_that_was_changed_is_found(packed: Packed, tmp_path: Path) -> None:
    _spoil(packed[0], tmp_path / "e.onnx", 0x01)
    extract(tmp_path / "e.onnx", 0, state_dict=tmp_path / "m0.safetensors")
    with pytest.raises(MismatchError, match=r"not those that were packed as member 1: expected weights sha256"):
        extract(tmp_path / "e.onnx", 1, state_dict=tmp_path / "m1.safetensors")
    assert not (tmp_path / "m1.safetensors").exists()


def _with_recipe(path: Path, target: Path, change: object) -> None:
    from ensexport.recipe.coding import encode

    model = onnx.load(path)
    entry = next(entry for entry in model.metadata_props if entry.key == "ensexport")
    metadata = json.loads(entry.value)
    recipe = decode(metadata[KEY])
    change(recipe["member"])  # type: ignore[operator]
    metadata[KEY] = encode(recipe)
    entry.value = json.dumps(metadata)
    onnx.save(model, target)


def test_a_recipe_that_puts_weights_in_each_others_place_is_found(packed: Packed, tmp_path: Path) -> None:
    def swap(recipe: dict) -> None:  # type: ignore[type-arg]
        first, second = (recipe["weights"][index] for index in (0, 2))
        first[1], second[1] = second[1], first[1]

    _with_recipe(packed[0], tmp_path / "e.onnx", swap)
    with pytest.raises((ArtifactError, MismatchError)):
        extract(tmp_path / "e.onnx", 1, onnx=tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


def test_a_recipe_that_computes_another_function_is_found(packed: Packed, tmp_path: Path) -> None:
    def negate(recipe: dict) -> None:  # type: ignore[type-arg]
        node = next(node for node in recipe["graph"]["nodes"] if node.get("target") == "aten.relu.default")
        node["target"] = "aten.neg.default"

    _with_recipe(packed[0], tmp_path / "e.onnx", negate)
    with pytest.raises(MismatchError, match=r"output 'output' of '.*m\.onnx' differs .* member 1 of '.*e\.onnx'"):
        extract(tmp_path / "e.onnx", 1, onnx=tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


BROKEN = {
    "no graph": lambda recipe: recipe.pop("graph"),
    "another op": lambda recipe: recipe["graph"]["nodes"][-1].update(target="aten.set_.source_Tensor"),
    "a piece too many": lambda recipe: recipe["recovery"]["nodes"][0].update(name="piece_77"),
    "no piece": lambda recipe: recipe["recovery"]["nodes"][0].update(name="leaf_0"),
    "no initializers": lambda recipe: recipe.update(pieces={}),
    "other sizes": lambda recipe: recipe.update(sizes={}),
    "a weight too few": lambda recipe: recipe["weights"].pop(),
    "no result": lambda recipe: recipe["weights"][0].__setitem__(1, 99),
    "a size that is none": lambda recipe: recipe["sizes"].update(batch="3"),
    "a weight without a shape": lambda recipe: recipe["graph"]["nodes"][0].pop("val"),
    "no tensors": lambda recipe: recipe["state"].update(tensors=[]),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_damaged_recipe_is_refused(change: object, packed: Packed, tmp_path: Path) -> None:
    _with_recipe(packed[0], tmp_path / "e.onnx", change)
    with pytest.raises(ArtifactError):
        extract(tmp_path / "e.onnx", 1, onnx=tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["e.onnx"]


def test_a_file_without_a_recipe_is_refused(packed: Packed, tmp_path: Path) -> None:
    model = onnx.load(packed[0])
    entry = next(entry for entry in model.metadata_props if entry.key == "ensexport")
    entry.value = json.dumps({k: v for k, v in json.loads(entry.value).items() if k != KEY})
    onnx.save(model, tmp_path / "e.onnx")
    with pytest.raises(ArtifactError, match=r"carries no recipe .*older ensexport"):
        extract(tmp_path / "e.onnx", 1, onnx=tmp_path / "m.onnx")


def test_weights_of_another_name_are_refused(packed: Packed, tmp_path: Path) -> None:
    model = onnx.load(packed[0])
    renamed = model.graph.initializer[0].name
    model.graph.initializer[0].name = "other"
    for node in model.graph.node:
        node.input[:] = ["other" if name == renamed else name for name in node.input]
    onnx.save(model, tmp_path / "e.onnx")
    with pytest.raises(ArtifactError, match=r"hold nothing of member 1"):
        extract(tmp_path / "e.onnx", 1, onnx=tmp_path / "m.onnx")


def test_usage(packed: Packed, tmp_path: Path) -> None:
    path, _ = packed
    with pytest.raises(UsageError, match=r"nothing is asked for"):
        extract(path, 0)
    with pytest.raises(UsageError, match=r"no member 3: expected 0 to 2"):
        extract(path, 3, onnx=tmp_path / "m.onnx")
    with pytest.raises(UsageError, match=r"'.*m\.ts': a member is taken out as ONNX"):
        extract(path, 0, onnx=tmp_path / "m.ts")
    with pytest.raises(UsageError, match=r"written as safetensors"):
        extract(path, 0, state_dict=tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"cannot take a member out of '.*e\.ts'"):
        extract(tmp_path / "e.ts", 0, onnx=tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"the folder holds no model\.onnx"):
        extract(tmp_path, 0, onnx=tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_text("mine")
    with pytest.raises(TargetExistsError):
        extract(path, 0, onnx=tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").read_text() == "mine"
