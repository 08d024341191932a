import argparse
import collections
import io
import pickle
import zipfile

import pytest
import torch

from ensexport.members import outline as outlines
from ensexport.members.calls import BlockedError, TensorOutline, UnreadableError
from ensexport.members.outline import UnknownStepError, check_tree, find_odd, read_outline


def outline_of(data):
    return read_outline(io.BytesIO(data), len(data))


def pickle_of(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as file:
        return file.read("archive/data.pkl")


def test_plain_values_are_what_they_are():
    content = {
        "plain": [None, True, 1, -2, 300, 70_000, 2**40, 0.5, 1 + 2j, "é", b"\xff", bytearray(b"q"), (), {1, 2}],
        "collections": [collections.OrderedDict([("a", 1)]), collections.Counter({"x": 3})],
        "options": argparse.Namespace(a=1),
    }
    assert outline_of(pickle_of(content)).content == content


def test_tensors_are_told_by_storage():
    shared = torch.zeros(10)
    found = outline_of(pickle_of({"a": shared, "b": shared[2:], "d": torch.zeros(3, dtype=torch.float64)}))
    assert {key: storage.size_bytes for key, storage in found.storages.items()} == {"0": 40, "1": 24}
    assert [type(value) for value in found.content.values()] == [TensorOutline] * 3
    assert found.odd == []


def test_what_a_state_dict_carries_beside_its_tensors_passes():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    state = module.state_dict()
    assert list(outline_of(pickle_of(state)).content) == list(state)
    tensor = torch.nn.Parameter(torch.ones(2))
    tensor.no_decay = True
    assert outline_of(pickle_of({"p": tensor, "q": torch.ones(2, dtype=torch.complex64).conj()})).odd == []


def test_an_odd_tensor_is_found_by_its_name():
    found = outline_of(pickle_of({"state": [{"head": torch.eye(2).to_sparse()}]}))
    assert found.odd == ["sparse"]
    assert find_odd(found.content) == "head"
    assert find_odd([1]) == ""


def test_the_file_stands_behind_the_pickle():
    file = io.BytesIO(pickle.dumps([1], protocol=2) + b"rest")
    read_outline(file, 100)
    assert file.read() == b"rest"


def test_names_that_are_not_on_the_list_are_blocked():
    with pytest.raises(BlockedError, match=r"^os\.system$"):
        outline_of(b"\x80\x02cos\nsystem\n.")
    with pytest.raises(BlockedError, match=r"^builtins\.eval$"):
        outline_of(b"\x80\x02c__builtin__\neval\n.")


def test_an_instruction_that_torch_does_not_know_is_said():
    with pytest.raises(UnknownStepError, match=r"the instruction b'\\x95', which"):
        outline_of(pickle.dumps([1, "a"], protocol=4))


@pytest.mark.parametrize(
    "data", [b"", b"\x80", b"N", b"J\x00.", b"X\x05\0\0\0ab.", b"ccollections", b"U\x02\xff\xff.", b"h\x05.", b"."]
)
def test_a_cut_or_broken_pickle_is_unreadable(data):
    with pytest.raises(UnreadableError, match=r"cut short|is damaged"):
        outline_of(data)


def test_memory_and_steps_are_bounded(monkeypatch):
    with pytest.raises(UnreadableError, match="far more memory than it has bytes"):
        outline_of(b"(" + b"\x8f" * 200_000 + b"t.")
    monkeypatch.setattr(outlines, "MAX_STEPS", 10)
    with pytest.raises(UnreadableError, match="more than 10 instructions"):
        outline_of(b"N" * 11)


def nested(levels):
    value = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_depth_is_bounded_whatever_order_it_is_met_in():
    check_tree(nested(100))
    with pytest.raises(UnreadableError, match="deeper than 100 levels"):
        check_tree(nested(103))
    low = nested(60)
    high = low
    for _ in range(60):
        high = [high]
    with pytest.raises(UnreadableError, match="deeper than 100 levels"):
        check_tree([low, high])  # the lower part is known already when the upper one is met


def test_cycles_and_unfolding_are_refused():
    ring = []
    ring.append({"a": (ring,)})
    with pytest.raises(UnreadableError, match="contains itself"):
        check_tree(ring)
    laughs = [1]
    for _ in range(30):
        laughs = [laughs] * 10
    with pytest.raises(UnreadableError, match="unfolds to more than 5000000 entries"):
        check_tree(laughs)
    options = argparse.Namespace()
    options.own = options
    with pytest.raises(UnreadableError, match="contains itself"):
        check_tree(options)
