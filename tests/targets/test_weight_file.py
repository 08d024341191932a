"""The file that packed weights are written to."""

import errno
import os

import pytest
import torch

from ensexport.batching.weights import PackedWeight
from ensexport.targets.weight_file import WeightFile, fill, make_scratch, put_all
from tests.batching.runs import batched
from tests.batching.table import TABLE


def _packed(name, shape, dtype=torch.float32, kind="stacked"):
    return PackedWeight(name, 0, kind, None, shape, dtype)


class _InMemory:
    def __init__(self, states):
        self.states = states

    def __len__(self):
        return len(self.states)

    def visit(self, member_index, use):
        use(self.states[member_index])


def test_a_scratch_file_holds_what_packing_in_memory_gives(tmp_path):
    row = TABLE["mlp"]
    members = [row.build().eval() for _ in range(3)]
    graph, weights = batched(members, *row.inputs)
    places = make_scratch(tmp_path / "w", graph.weights.packed, 3)
    told = []
    states = _InMemory([{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in members])
    with WeightFile(tmp_path / "w", places) as file:
        fill([file], graph.weights, states, told.append)
        for weight in graph.weights.packed:
            assert torch.equal(file.mapped(weight, 3), weights[weight.name]), weight.name
    assert told == sorted(told)
    assert told[-1] == sum(weight.n_bytes(3) for weight in graph.weights.packed)


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.int64], ids=str)
def test_every_dtype_comes_back_mapped(tmp_path, dtype):
    packed = [_packed("first", (3,), torch.bool), _packed("w", (2, 5), dtype), _packed("none", (0, 4), dtype)]
    places = make_scratch(tmp_path / "w", packed, 3)
    values = {weight.name: torch.randint(0, 2, weight.shape(3)).to(weight.dtype) for weight in packed}
    with WeightFile(tmp_path / "w", places) as file:
        put_all(file, values)
        for weight in packed:
            assert torch.equal(file.mapped(weight, 3), values[weight.name])


def test_a_mapped_weight_is_not_written_back(tmp_path):
    weight = _packed("w", (4,))
    places = make_scratch(tmp_path / "w", [weight], 2)
    with WeightFile(tmp_path / "w", places) as file:
        file.mapped(weight, 2).fill_(7)
        assert float(file.mapped(weight, 2).sum()) == 0


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX's")
def test_what_the_system_refuses_is_its_own_error(tmp_path):
    import resource

    (tmp_path / "w").write_bytes(b"")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with WeightFile(tmp_path / "w", {"w": 0}) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            file.put("w", 0, memoryview(b"1" * 4096))
            with pytest.raises(OSError, match="File too large") as found:
                file.put("w", 1, memoryview(b"1" * 4096))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert found.value.errno == errno.EFBIG
