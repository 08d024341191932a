import hashlib

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ensexport.errors import CheckpointError
from ensexport.members.tensors import find_nonfinite, plain_state, same_bytes, weights_digest

ALL_DTYPES = [
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.float8_e4m3fn,
    torch.int8, torch.int64, torch.uint8, torch.bool,
]  # fmt: skip


def test_tensors_come_out_plain_contiguous_and_equal():
    source = {
        "p": nn.Parameter(torch.randn(3)),
        "t": torch.randn(4, 5).t(),
        "c": torch.randn(3, dtype=torch.complex64).conj(),
        "s": torch.tensor(7),
        "e": torch.zeros(0, 3),
    }
    state = plain_state(source, "m.pt", size_bytes=1000)
    assert list(state) == list(source)
    for name, tensor in state.items():
        assert type(tensor) is torch.Tensor
        assert tensor.is_contiguous()
        assert not tensor.requires_grad
        assert not tensor.is_conj()
        assert torch.equal(tensor, source[name])


def test_tied_weights_stay_one_object_and_others_do_not():
    weight = torch.randn(6, 2).t()
    state = plain_state({"a": weight, "b": weight[:], "c": weight[:1], "d": weight.clone()}, "m.pt", size_bytes=1000)
    assert state["a"] is state["b"]
    assert len({id(tensor) for tensor in state.values()}) == 3
    assert torch.equal(state["c"], weight[:1])


def sparse():
    return torch.sparse_coo_tensor([[0]], [1.0], (3,), check_invariants=False)


class Special(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (sparse, r"sparse \(torch.sparse_coo\)"),
        (lambda: torch.empty(3, device="meta"), r"without data \(device meta\)"),
        (lambda: torch.zeros(3).as_subclass(Special), "of type Special"),
        (
            lambda: torch._empty_affine_quantized([3], scale=1, zero_point=0, dtype=torch.qint8),
            "quantised .*qint8",
        ),
        (lambda: torch.nested.nested_tensor([torch.zeros(2)], layout=torch.jagged), "of type NestedTensor"),
    ],
    ids=["sparse", "meta", "subclass", "quantised", "nested"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_that_cannot_be_packed_are_named(make, what):
    with pytest.raises(CheckpointError, match=f"tensor 'odd' in 'm.pt': expected a dense tensor, got one {what}"):
        plain_state({"fine": torch.zeros(1), "odd": make()}, "m.pt", size_bytes=1000)


@pytest.mark.parametrize("side", [10**6, 2000], ids=["a terabyte", "16 MB"])
def test_a_tensor_far_larger_than_its_storage_is_refused_before_it_is_copied(side):
    with pytest.raises(CheckpointError, match=rf"'x' in 'm.pt' claims {4 * side**2} bytes .*storage has 4 and the"):
        plain_state({"x": torch.zeros(1).expand(side, side)}, "m.pt", size_bytes=1600)


def test_many_views_of_one_storage_are_refused_together():
    whole = torch.zeros(300_000)
    with pytest.raises(CheckpointError, match=r"claims .* bytes"):
        plain_state({str(n): whole[n:] for n in range(20)}, "m.pt", size_bytes=1_200_000)


def test_a_small_expanded_buffer_is_fine():
    state = plain_state({"ids": torch.arange(8).expand(4, 8)}, "m.pt", size_bytes=500)
    assert state["ids"].is_contiguous()
    assert state["ids"].shape == (4, 8)


def test_nan_and_inf_are_found_by_name():
    state = {
        "fine": torch.ones(3),
        "nan": torch.tensor([1.0, float("nan")]),
        "int": torch.tensor([1]),
        "inf": torch.tensor([float("-inf")], dtype=torch.bfloat16),
        "complex": torch.tensor([complex(0, float("inf"))]),
        "empty": torch.zeros(0),
        "float8": torch.tensor([float("nan")]).to(torch.float8_e4m3fn),
    }
    assert find_nonfinite(state) == ["nan", "inf", "complex", "float8"]


def test_the_digest_is_that_of_names_dtypes_shapes_and_bytes():
    tensor = torch.tensor([[1.0, 2.0]])
    expected = hashlib.sha256(b"1 a torch.float32 (1, 2) " + tensor.numpy().tobytes()).hexdigest()
    assert weights_digest({"a": tensor}) == expected


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)], ids=str)
def test_every_dtype_and_shape_has_a_digest(dtype, shape):
    zeros = torch.zeros(shape, dtype=dtype)
    assert weights_digest({"a": zeros}) == weights_digest({"a": zeros.clone()})
    assert weights_digest({"a": zeros}) != weights_digest({"a": zeros.reshape(1, *shape)})


def test_the_digest_does_not_depend_on_format_order_or_layout(tmp_path):
    weight = torch.randn(3, 4, dtype=torch.bfloat16)
    state = {"b": weight, "a": weight, "t": torch.randn(2, 5).t()}
    torch.save(state, tmp_path / "m.pt")
    save_file({name: state[name].clone().contiguous() for name in "abt"}, tmp_path / "m.safetensors")
    saved = torch.load(tmp_path / "m.pt", weights_only=True)
    assert weights_digest(state) == weights_digest(saved) == weights_digest(load_file(tmp_path / "m.safetensors"))


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.ones(2)},
        {"a": torch.ones(2, dtype=torch.float64)},
        {"a": torch.ones(2, 1)},
        {"a": -torch.ones(2)},
    ],
    ids=["name", "dtype", "shape", "value"],
)
def test_the_digest_tells_weights_apart(other):
    assert weights_digest({"a": torch.ones(2)}) != weights_digest(other)


def test_same_bytes_takes_nan_as_equal_and_dtype_as_different():
    nan = torch.tensor([float("nan")])
    assert same_bytes(nan, nan.clone())
    assert not same_bytes(nan, torch.ones(1))
    assert not same_bytes(torch.ones(1), torch.ones(1, dtype=torch.float64))
    assert not same_bytes(torch.ones(1), torch.ones(1, 1))
