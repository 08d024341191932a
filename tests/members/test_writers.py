"""Each writer's checkpoint is found as what it is, and gives back the weights that were written."""

import pytest
import torch

from ensexport.errors import CheckpointError, IncompleteCheckpointError, UnsafeCheckpointError
from ensexport.members.checkpoint import load_file
from ensexport.members.folder_loading import load_folder
from ensexport.members.folders import member_folder
from ensexport.members.trust import Trust
from tests.members.writers import ENSEMBLES, LAYOUTS, deepspeed, deepspeed_zero3, tiny_bert, tiny_net
from tests.zoo.stubs import declare_if_needed

NAMES = [pytest.param(name, marks=pytest.mark.zoo if layout.needs else ()) for name, layout in sorted(LAYOUTS.items())]


@pytest.fixture(scope="module")
def operators():
    """torchvision's operators, where its build does not fit torch's; timm and lightning import it."""
    library = declare_if_needed()
    yield
    del library


def prepare(layout, request):
    for library in layout.needs:
        if library in {"timm", "lightning"}:
            pytest.importorskip("torchvision", reason="needs torchvision (extra 'zoo')", exc_type=ImportError)
        pytest.importorskip(library, reason=f"needs {library}, which the tests do not install")
    return tiny_bert if "transformers" in layout.needs else tiny_net


def load(path, trust):
    folder = member_folder(path) if path.is_dir() else None
    return (load_folder(folder, trust=trust) if folder else load_file(path, trust=trust)), folder and folder.kind


def weights_in(content, layout):
    inner = content if layout.container_key is None else content[layout.container_key]
    inner = inner.state_dict() if isinstance(inner, torch.nn.Module) else inner
    return {
        name.removeprefix(layout.prefix or "").replace("_orig_mod.", ""): tensor
        for name, tensor in inner.items()
        if name != "n_averaged"
    }


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert torch.equal(found[name].to(expected[name].dtype), expected[name]), name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")  # of the libraries, which differ by their versions
def test_what_a_tool_writes_is_read_back(tmp_path, name, request):
    layout = LAYOUTS[name]
    if layout.needs:
        request.getfixturevalue("operators")
    module = prepare(layout, request)(seed=0)
    if name == "ultralytics":
        module.half().float()  # what half precision can hold
    expected = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    path = layout.write(tmp_path, module, 0)
    if layout.asks_for_code:
        with pytest.raises(UnsafeCheckpointError, match="asks to run"):
            load(path, Trust())
        if name == "mmengine":
            return  # its class is not here to be loaded
    loaded, kind = load(path, Trust(allow_pickle=layout.asks_for_code))
    assert kind == layout.kind
    content = loaded.content.state_dict() if isinstance(loaded.content, torch.nn.Module) else loaded.content
    assert_same(weights_in(content, layout), expected)
    if layout.prefix:
        inner = content if layout.container_key is None else content[layout.container_key]
        assert all(key.startswith(layout.prefix) or key == "n_averaged" for key in inner)


@pytest.mark.parametrize("name", sorted(name for name, layout in LAYOUTS.items() if not layout.needs))
def test_members_of_one_run_do_not_overwrite_each_other(tmp_path, name):
    paths = [LAYOUTS[name].write(tmp_path, tiny_net(seed=k), k) for k in range(3)]
    assert len(set(paths)) == 3
    assert all(path.exists() for path in paths)


@pytest.mark.parametrize("name", sorted(ENSEMBLES))
def test_an_ensemble_in_one_file_holds_every_member(tmp_path, name):
    modules = [tiny_net(seed=k) for k in range(3)]
    content = load_file(ENSEMBLES[name](tmp_path, modules)).content
    weights = [module.state_dict()["3.weight"] for module in modules]
    found = [tensor for key, tensor in content.items() if key.endswith("3.weight")]
    if name == "stacked":
        assert torch.equal(found[0], torch.stack(weights))
    else:
        assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))
        assert len(content) == 3 * len(modules[0].state_dict())


def test_what_zero3_wrote_is_refused(tmp_path):
    run = deepspeed_zero3(tmp_path, tiny_net(0), 0)
    with pytest.raises(IncompleteCheckpointError, match="ZeRO-3 split them over zero_pp_rank_0"):
        member_folder(run)


def test_states_whose_weights_are_empty_are_refused_whatever_the_file_is_called(tmp_path):
    run = deepspeed_zero3(tmp_path, tiny_net(0), 0)
    states = run / "global_step500" / "mp_rank_00_model_states.pt"
    (states.parent / "zero_pp_rank_0_mp_rank_00_model_states.pt").rename(states)
    with pytest.raises(IncompleteCheckpointError, match=r"'0\.weight', .* are empty, for ZeRO-3 split them"):
        load_folder(member_folder(run))


def test_weights_that_are_a_link_out_of_the_folder_are_refused(tmp_path):
    run = deepspeed(tmp_path / "a", tiny_net(0), 0)
    states = run / "global_step500" / "mp_rank_00_model_states.pt"
    states.rename(tmp_path / "elsewhere.pt")
    states.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(CheckpointError, match="it is a link that leaves the folder"):
        load_folder(member_folder(run))
