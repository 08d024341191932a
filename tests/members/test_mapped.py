"""Tensors that lie in a file are copied by reading the file."""

import os
import sys

import pytest
import torch
from safetensors.torch import save_file

from ensexport.errors import CheckpointError
from ensexport.members.checkpoint import Ledger, load_file
from ensexport.members.mapped import MappedFile
from ensexport.members.reading import open_checkpoint, read_checkpoint

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say where a file is mapped")


def states():
    whole = torch.arange(24.0).reshape(4, 6)
    return {
        "plain": whole.clone(),
        "turned": whole.t(),
        "part": whole[1:3, ::2],
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j, 3 - 1j]).conj(),
        "flag": torch.tensor([True, False]),
        "number": torch.tensor(7),
    }


@LINUX
def test_whatever_its_form_a_tensor_is_read_from_the_file(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(states(), path)
    content = load_file(path).content
    file = MappedFile(path)
    for name, expected in states().items():
        copied = file.copy(content[name].detach())
        assert copied is not None, name
        assert copied.is_contiguous()
        assert not copied.is_conj()
        assert torch.equal(copied, expected.resolve_conj()), name
    file.close()


@LINUX
def test_safetensors_are_mapped_too(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(3), "b": torch.arange(4)}, path)
    content = load_file(path).content
    file = MappedFile(path)
    assert torch.equal(file.copy(content["b"]), torch.arange(4))
    file.close()


def test_what_lies_elsewhere_is_no_matter_of_the_file(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(states(), path)
    file = MappedFile(path)
    assert file.copy(torch.ones(3)) is None
    assert file.copy(torch.empty(0)) is None
    file.close()


@LINUX
def test_a_file_that_shrinks_while_it_is_read_is_refused_and_ends_nothing(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(100_000)}, path)
    content = load_file(path).content
    file = MappedFile(path)
    os.truncate(path, 100_000)
    with pytest.raises(CheckpointError, match=r"m\.pt' changed while it was read \(4\d+ bytes, then 100000\)"):
        file.copy(content["w"])
    file.close()


@pytest.mark.parametrize("change", ["shorter", "other", "gone"])
def test_a_file_that_changes_before_its_weights_are_taken_is_refused(tmp_path, change):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(100_000)}, path)
    opened = open_checkpoint(path)
    if change == "shorter":
        os.truncate(path, 100_000)
    elif change == "other":
        os.utime(path, (1, 1))
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"changed while it was read|went away while it was read"):
        opened.take(opened.state)


def test_what_was_taken_is_no_part_of_the_file(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.ones(1000), "tied": torch.ones(1000)}, path)
    state = read_checkpoint(path).state
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert torch.equal(state["w"], torch.ones(1000))


def test_a_file_read_again_is_not_digested_again_unless_it_may_have_changed(tmp_path, monkeypatch):
    path, ledger, digests = tmp_path / "m.pt", Ledger(), []
    torch.save({"w": torch.ones(10)}, path)
    from ensexport.members import checkpoint

    compute = checkpoint._digest
    monkeypatch.setattr(checkpoint, "_digest", lambda file: digests.append(file) or compute(file))
    first = load_file(path, ledger=ledger)
    assert load_file(path, ledger=ledger).sha256 == first.sha256
    assert len(digests) == 1
    os.utime(path, ns=(0, path.stat().st_mtime_ns))  # as one who hides a change would
    assert load_file(path, ledger=ledger).sha256 == first.sha256
    assert len(digests) == 2
    torch.save({"w": torch.zeros(10)}, path)
    with pytest.raises(CheckpointError, match="changed while it was read"):
        load_file(path, ledger=ledger)
