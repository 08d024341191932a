import argparse
import contextlib
import hashlib
import io
import os
import pickle
import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members import checkpoint, torch_file
from ensexport.members.checkpoint import load_file
from ensexport.members.containers import Origin
from ensexport.members.reading import read_checkpoint
from ensexport.members.trust import Trust


def save(obj, path, **options):
    torch.save(obj, path, **options)
    return path


def state():
    return {"w": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype
        assert torch.equal(found[name], expected[name])


class Payload:
    """Pickles as a call that would create the canary file."""

    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


# -- what is read ------------------------------------------------------------------------------------


def test_a_zip_file_is_read_with_its_facts(tmp_path):
    path = save({"epoch": 3, "state_dict": {f"module.{n}": t for n, t in state().items()}}, tmp_path / "m.pt")
    found = read_checkpoint(path)
    assert_same(found.state, state())
    assert found.container_key == "state_dict"
    assert found.stripped_prefix == "module."
    assert found.format == "torch-zip"
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_legacy_file_is_read(tmp_path):
    path = save(state(), tmp_path / "m.pth", _use_new_zipfile_serialization=False)
    found = read_checkpoint(str(path))
    assert_same(found.state, state())
    assert found.container_key is None
    assert found.format == "torch-legacy"


def test_a_safetensors_file_is_read_and_does_not_hang_on_the_file(tmp_path):
    path = tmp_path / "m.safetensors"
    weights = {"b": torch.randn(5, dtype=torch.bfloat16), "w": torch.randn(3, 2)}
    save_file(weights, path)
    found = read_checkpoint(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert found.format == "safetensors"
    assert sorted(found.state) == ["b", "w"]
    assert all(torch.equal(found.state[name], weights[name]) for name in weights)


@pytest.mark.parametrize("name", ["a b.pt", "line\nbreak.pt", "\N{SNOWMAN}.pt", "-x.pt", b"\xff.pt"], ids=repr)
def test_odd_file_names_are_read(tmp_path, name):
    path = tmp_path / (os.fsdecode(name) if isinstance(name, bytes) else name)
    with path.open("wb") as file:
        torch.save(state(), file)
    assert_same(read_checkpoint(path).state, state())


@pytest.mark.parametrize("name", ["line\nbreak.safetensors", "\N{SNOWMAN}.safetensors"], ids=repr)
def test_odd_safetensors_names_are_read(tmp_path, name):
    buffer = tmp_path / "plain.safetensors"
    save_file({"w": torch.ones(2)}, buffer)
    assert_same(read_checkpoint(buffer.rename(tmp_path / name)).state, {"w": torch.ones(2)})


def test_tied_weights_stay_tied_and_parameters_become_tensors(tmp_path):
    weight = nn.Parameter(torch.randn(4, 3))
    found = read_checkpoint(save({"emb": weight, "head": weight, "half": weight[:2]}, tmp_path / "m.pt")).state
    assert found["emb"] is found["head"]
    assert type(found["emb"]) is torch.Tensor
    assert torch.equal(found["half"], weight[:2])


def test_complex_and_noncontiguous_tensors_are_read(tmp_path):
    weights = {"c": torch.randn(2, dtype=torch.complex64), "t": torch.randn(3, 2).t()}
    found = read_checkpoint(save(weights, tmp_path / "m.pt")).state
    assert_same(found, weights)
    assert found["t"].is_contiguous()


def test_an_old_pickle_protocol_warns_no_one(tmp_path):
    assert_same(read_checkpoint(save(state(), tmp_path / "m.pt", pickle_protocol=3)).state, state())


# -- files that are no checkpoint ----------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            r"a Git LFS pointer \(63 bytes\)",
        ),
        (b"\n <!DOCTYPE html><html>Sign in</html>", "it is a web page, not a checkpoint"),
        (b"<html>", "it is a web page"),
        (random.Random(0).randbytes(1000), "truncated, damaged, or"),
        (b"hello, this is text", "truncated, damaged, or"),
    ],
    ids=["empty", "lfs", "doctype", "html", "random", "text"],
)
def test_other_files_say_what_they_are(tmp_path, suffix, data, reason):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert f"'{path}'" in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_suffix_is_only_a_name(tmp_path):
    save(state(), tmp_path / "m.safetensors")
    save_file(state(), tmp_path / "m.pt")
    assert read_checkpoint(tmp_path / "m.safetensors").format == "torch-zip"
    assert read_checkpoint(tmp_path / "m.pt").format == "safetensors"
    assert_same(read_checkpoint(tmp_path / "m.safetensors").state, state())


def test_a_safetensors_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="holds no state dict: found an empty dict"):
        read_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_bare_pickle_is_refused_and_told_how_to_go_on(tmp_path, suffix):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(pickle.dumps({"a": [1, 2]}, protocol=4))
    with pytest.raises(UnsafeCheckpointError, match=r"it is a bare pickle, .* give --allow-pickle"):
        read_checkpoint(path)


def test_a_newer_pickle_protocol_is_refused_and_told_how_to_go_on(tmp_path):
    path = save({"w": [1]}, tmp_path / "m.pt", pickle_protocol=4)
    with pytest.raises(UnsafeCheckpointError, match=r"holds the instruction b'\\x95', .* default protocol"):
        read_checkpoint(path)


@pytest.mark.parametrize("cut", [lambda n: n // 2, lambda n: n - 10], ids=["half", "last 10 bytes"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(tmp_path, kind, cut):
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        save_file({"w": torch.randn(100)}, path)
    else:
        save({"w": torch.randn(100)}, path, _use_new_zipfile_serialization=kind == "zip")
    data = path.read_bytes()
    path.write_bytes(data[: cut(len(data))])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_flipped_bit_is_refused_and_its_record_named(tmp_path):
    weight = torch.randn(100)
    path = save({"w": weight}, tmp_path / "m.pt")
    data = bytearray(path.read_bytes())
    data[data.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["w"], weight), "torch itself does not notice"
    with pytest.raises(CheckpointError, match=f"'{path}' is damaged: its record 'm/data/0' fails"):
        read_checkpoint(path)


def test_damage_anywhere_is_an_error_of_ours_or_harmless(tmp_path):
    path = save({"state_dict": state(), "epoch": 1}, tmp_path / "m.pt")
    data, source = path.read_bytes(), random.Random(1)
    for _ in range(150):
        broken = bytearray(data)
        broken[source.randrange(len(broken))] ^= 1 << source.randrange(8)
        path.write_bytes(broken)
        with contextlib.suppress(CheckpointError):
            assert_same(read_checkpoint(path).state, state())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: [torch.zeros(1)], "holds no state dict: found a list of 1"),
        (lambda: {"epoch": 3}, r"found a dict with 'epoch' \(an int\)"),
        (lambda: {"x": torch.zeros(1).expand(10**6, 10**6)}, "'x' in .* claims 4000000000000 bytes"),
        (lambda: {"x": torch.zeros(1, device="meta")}, "tensor 'x' in .* without data"),
        (
            lambda: {"x": torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=False)},
            "'x' in .* sparse",
        ),
    ],
    ids=["list", "no tensors", "stride 0", "meta", "sparse"],
)
def test_contents_that_cannot_be_packed_are_refused(tmp_path, make, reason):
    path = save(make(), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=reason) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*gone\.pt': No such file"):
        read_checkpoint(tmp_path / "gone.pt")
    os.mkfifo(tmp_path / "p.pt")
    with pytest.raises(CheckpointError, match=r"p\.pt': it is not a regular file"):
        read_checkpoint(tmp_path / "p.pt")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_read_error_is_refused(tmp_path):
    (tmp_path / "m.pt").symlink_to("/proc/self/mem")
    with pytest.raises(CheckpointError, match=r"cannot read .*m\.pt': Input/output error"):
        read_checkpoint(tmp_path / "m.pt")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path):
    path = save(state(), tmp_path / "m.pt")
    before = path.stat()
    save(state() | {"more": torch.zeros(9)}, path)
    with pytest.raises(CheckpointError, match=f"changed while it was read .{before.st_size} bytes, then"):
        checkpoint._check_unchanged(before, path.stat(), str(path))


# -- files that ask for code ---------------------------------------------------------------------------


def payload_files(folder, canary):
    for protocol in range(6):
        (folder / f"bare{protocol}.pt").write_bytes(pickle.dumps({"w": Payload(canary)}, protocol=protocol))
    (folder / "tail.pt").write_bytes(pickle.dumps(Payload(canary), protocol=2) + b"\x00broken")
    save({"state_dict": state(), "hook": Payload(canary)}, folder / "zip.pt")
    save(Payload(canary), folder / "legacy.pt", _use_new_zipfile_serialization=False)
    return sorted(folder.iterdir())


def test_a_payload_is_named_and_never_run(tmp_path):
    canary = tmp_path / "canary"
    (tmp_path / "d").mkdir()
    for path in payload_files(tmp_path / "d", canary):
        with pytest.raises(UnsafeCheckpointError, match=r"it asks to run (posix|nt)\.system;") as caught:
            read_checkpoint(path)
        assert str(path) in str(caught.value)
        assert "weights_only" not in str(caught.value)
        assert caught.value.exit_code == 3
    assert not canary.exists()


@pytest.mark.parametrize("function", [eval, exec, getattr, __import__, torch.load], ids=lambda f: f.__name__)
def test_other_dangerous_calls_are_named(tmp_path, function):
    class Call:
        def __reduce__(self):
            return function, ("1",)

    path = save({"w": Call()}, tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError, match=rf"it asks to run [\w.]*{function.__name__};"):
        read_checkpoint(path)


def test_a_pickled_module_names_its_classes(tmp_path):
    path = save(nn.Sequential(nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(UnsafeCheckpointError, match=r"torch\.nn\.modules\.container\.Sequential") as caught:
        read_checkpoint(path)
    assert "torch.nn.modules.linear.Linear" in caught.value.details["blocked"]
    assert "state_dict()" in caught.value.hint


def test_programs_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated in new versions
        torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "script.pt"))
    with pytest.raises(UnsafeCheckpointError, match=r"script\.pt': it is a TorchScript program"):
        read_checkpoint(tmp_path / "script.pt")
    program = torch.export.export(nn.ReLU(), (torch.zeros(2),))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (tmp_path / "program.pt").write_bytes(buffer.getvalue())
    with pytest.raises(UnsafeCheckpointError, match=r"program\.pt': it is a torch.export program"):
        read_checkpoint(tmp_path / "program.pt")


def test_an_environment_that_switches_safety_off_is_refused(tmp_path, monkeypatch):
    path = save(state(), tmp_path / "m.pt")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(UnsafeCheckpointError, match="TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set"):
        read_checkpoint(path)


def test_the_options_that_timm_and_torchvision_save_are_plain_values(tmp_path):
    args = argparse.Namespace(model="resnet18", num_classes=3, lr=0.1, nested=argparse.Namespace(a=[1]))
    path = save({"arch": "resnet18", "args": args, "state_dict": {"w": torch.ones(2)}}, tmp_path / "last.pth.tar")
    found = read_checkpoint(path)
    assert list(found.state) == ["w"]
    assert found.origin == Origin("resnet18", {"num_classes": 3})
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def test_options_that_hold_other_objects_are_refused(tmp_path):
    args = argparse.Namespace(folder=random.Random())
    path = save({"args": args, "state_dict": {"w": torch.ones(2)}}, tmp_path / "last.pth.tar")
    with pytest.raises(UnsafeCheckpointError, match=r"asks to run random\.Random;.* give --allow-pickle where"):
        read_checkpoint(path)
    assert read_checkpoint(path, trust=Trust(allow_pickle=True)).state["w"].tolist() == [1.0, 1.0]


# -- files that are trusted ------------------------------------------------------------------------------


def test_a_pickled_module_is_read_where_pickles_are_trusted(tmp_path):
    module = nn.Linear(2, 3)
    for path in (
        save(module, tmp_path / "m.pt"),
        save(module, tmp_path / "l.pt", _use_new_zipfile_serialization=False),
    ):
        found = load_file(path, trust=Trust(allow_pickle=True))
        assert isinstance(found.content, nn.Linear)
        assert torch.equal(found.content.weight, module.weight)


def test_a_bare_pickle_is_read_where_pickles_are_trusted(tmp_path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"state_dict": state()}))
    found = read_checkpoint(tmp_path / "m.pkl", trust=Trust(allow_pickle=True))
    assert found.format == "pickle"
    assert_same(found.state, state())


def test_a_trusted_file_that_needs_no_code_is_read_the_safe_way(tmp_path, monkeypatch):
    path = save(state(), tmp_path / "m.pt")
    monkeypatch.setattr(torch_file, "load_pickle", lambda *_, **__: pytest.fail("unpickled"))
    assert_same(read_checkpoint(path, trust=Trust(allow_pickle=True)).state, state())


def test_damage_is_refused_also_where_pickles_are_trusted(tmp_path):
    path = save(state(), tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match="its storages end at byte"):
        read_checkpoint(path, trust=Trust(allow_pickle=True))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"cno_such_package.models\nNet\n.", "No module named 'no_such_package'.* Install 'no_such_package', or put"),
        (b"cargparse\nNoSuchName\n.", "cannot be imported here .AttributeError.* Install the version of the package"),
        (b"cargparse", "truncated, damaged, or no pickle"),
    ],
    ids=["module", "name", "cut"],
)
def test_a_trusted_pickle_that_cannot_be_read_says_why(tmp_path, data, reason):
    (tmp_path / "m.pkl").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        read_checkpoint(tmp_path / "m.pkl", trust=Trust(allow_pickle=True))


def script(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated in new versions
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script.pt"))
    return folder / "script.pt"


def program(folder):
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), buffer)
    (folder / "program.pt2").write_bytes(buffer.getvalue())
    return folder / "program.pt2"


@pytest.mark.parametrize(("make", "kind"), [(script, "torchscript"), (program, "pt2")])
def test_programs_give_their_weights_where_code_is_trusted(tmp_path, make, kind):
    path = make(tmp_path)
    found = read_checkpoint(path, trust=Trust(trust_code=True))
    assert found.format == kind
    assert {name: tuple(tensor.shape) for name, tensor in found.state.items()} == {"weight": (2, 2), "bias": (2,)}
    with pytest.raises(UnsafeCheckpointError, match=r"which runs code .* give --trust-code"):
        read_checkpoint(path, trust=Trust(allow_pickle=True))


def test_a_broken_program_says_so_where_code_is_trusted(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.pt", "w") as file:
        file.writestr("m/constants.pkl", b"")
    with pytest.raises(CheckpointError, match=r"m\.pt': a TorchScript program that this torch cannot open"):
        read_checkpoint(tmp_path / "m.pt", trust=Trust(trust_code=True))


# -- what stays in the file -----------------------------------------------------------------------------


def test_what_is_done_to_a_file_later_does_not_reach_the_weights(tmp_path):
    path = save({"state_dict": state(), "optimizer": torch.zeros(1000)}, tmp_path / "m.pt")
    loaded = load_file(path)
    assert not loaded.content["optimizer"].untyped_storage().resizable(), "still mapped"
    found = read_checkpoint(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert_same(found.state, state())


def test_a_file_that_changes_before_its_weights_are_copied_is_refused(tmp_path):
    path = save(state(), tmp_path / "m.pt")
    loaded = load_file(path)
    loaded.check_unchanged()
    os.utime(path, ns=(1, 1))
    with pytest.raises(CheckpointError, match=r"m\.pt' changed while it was read"):
        loaded.check_unchanged()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"m\.pt' went away while it was read .No such file"):
        loaded.check_unchanged()
