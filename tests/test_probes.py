import pytest
import torch
from torch import nn

from ensexport.batching.examples import BagOffsets, IntegerRange
from ensexport.errors import ModelInputError, ModelOutputError, UsageError
from ensexport.probes import BATCHES, SEEDS, batches_that_fit, few_probes, find_probes, make_probes, usable_probes
from ensexport.spec import parse_inputs

OPEN = {"batch": (1, None), "t": (1, None)}


def probes_of(inputs, per_member=(), *, n_members=3, sizes=None, dims=None, **options):
    sizes = {"batch": 3, "t": 16} if sizes is None else sizes
    dims = OPEN if dims is None else dims
    return make_probes(parse_inputs(inputs), per_member, n_members, example_sizes=sizes, dim_ranges=dims, **options)


def test_every_batch_size_is_tried_with_every_seed():
    probes = probes_of(["x:float32[batch,4]"])
    assert [(probe.batch, probe.seed) for probe in probes] == [(b, s) for b in BATCHES for s in SEEDS]
    assert all(probe.feed["x"].shape == (probe.batch, 4) for probe in probes)
    assert {1, 2, 3, 7, 13} <= set(BATCHES)
    assert len(SEEDS) >= 3


def test_other_dynamic_dims_are_moved_too():
    probes = probes_of(["x:float32[batch,t]", "mask:bool[batch,t]"], seeds=(0,))
    assert [probe.sizes["t"] for probe in probes] == [16, 17, 15, 16, 17]
    assert all(probe.feed["x"].shape == probe.feed["mask"].shape for probe in probes)


def test_per_member_inputs_have_a_leading_axis_and_slices_of_their_own():
    probe = probes_of(["x:float32[batch,4]", "context:float32[2]"], ["x"], batches=(5,))[0]
    assert probe.feed["x"].shape == (3, 5, 4)
    assert probe.feed["context"].shape == (2,)
    assert not probe.feed["x"][0].equal(probe.feed["x"][1])
    feed = probe.member_feed(2, ["x"])
    assert feed["x"].equal(probe.feed["x"][2])
    assert feed["context"] is probe.feed["context"]
    assert list(feed) == ["x", "context"]


def test_the_same_seed_gives_the_same_values_and_another_seed_others():
    first, again = probes_of(["x:float32[batch,4]"]), probes_of(["x:float32[batch,4]"])
    assert all(a.feed["x"].equal(b.feed["x"]) for a, b in zip(first, again, strict=True))
    assert not first[0].feed["x"].equal(first[1].feed["x"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64", "int64", "uint8", "bool"])
def test_values_have_the_dtype_that_was_asked_for(dtype):
    x = probes_of([f"x:{dtype}[batch,50]"], batches=(7,))[0].feed["x"]
    assert x.dtype == getattr(torch, dtype)
    assert len(x.unique()) > 1


RANGES = {
    "at least 2": ((2, None), [2, 3, 7, 13]),
    "at most 3": ((1, 3), [1, 2, 3]),
    "none fits, so the example": ((20, 30), [24]),
}


@pytest.mark.parametrize(("bounds", "sizes"), RANGES.values(), ids=RANGES)
def test_batch_sizes_outside_their_range_are_left_out(bounds, sizes):
    probes = probes_of(["x:float32[batch]"], sizes={"batch": 24}, dims={"batch": bounds}, seeds=(0,))
    assert [probe.batch for probe in probes] == sizes


@pytest.mark.parametrize(
    ("bounds", "sizes"), [((16, 16), {16}), ((1, 16), {15, 16}), ((16, None), {16, 17})], ids=["fixed", "top", "bottom"]
)
def test_other_dims_stay_in_their_range(bounds, sizes):
    probes = probes_of(["x:float32[batch,t]"], dims={"batch": (1, None), "t": bounds})
    assert {probe.sizes["t"] for probe in probes} == sizes


def test_a_dim_without_a_range_keeps_the_size_that_was_tried():
    probes = probes_of(["x:float32[batch,t]"], dims={"batch": (1, None)})
    assert {probe.sizes["t"] for probe in probes} == {16}
    probes = probes_of(["x:float32[batch,t]"], dims={"t": (1, None)}, seeds=(0,))
    assert [probe.batch for probe in probes] == [3]


def test_without_a_dynamic_dim_there_is_one_size():
    probes = probes_of(["x:float32[2,4]"], sizes={})
    assert [probe.batch for probe in probes] == [None] * len(SEEDS)
    assert probes[0].sizes == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seeds": ()}, "no seed is given"), ({"batches": (2, 0)}, "the batch sizes are 2, 0: expected 1 or more")],
    ids=["no seed", "batch 0"],
)
def test_what_would_compare_nothing_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        probes_of(["x:float32[batch]"], **options)


class Table(nn.Module):
    """A position table with 16 rows; notes how often it was called."""

    def __init__(self, rows=16):
        super().__init__()
        self.positions = nn.Embedding(rows, 1)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.positions(torch.arange(x.shape[1]))[:, 0]


def test_sizes_that_the_model_itself_refuses_are_left_out():
    probes = probes_of(["x:float32[batch,t]"], ["x"])
    module = Table()
    found = usable_probes(module, probes, ["x"])
    usable = found.probes
    assert {probe.sizes["t"] for probe in usable} == {15, 16}
    assert len(usable) == 3 * len(SEEDS)
    assert module.calls == len(BATCHES)  # one try a size
    assert found.warnings[0].startswith(
        "not compared at batch 2, t 17; batch 13, t 17, which the model itself refuses: "
    )
    assert usable_probes(Table(17), probes, ["x"]).probes == probes


def test_a_model_that_refuses_every_size_is_an_error():
    with pytest.raises(
        ModelInputError, match=r"none of the sizes .*\(batch 1, t 16; batch 2, t 17.*: IndexError"
    ) as caught:
        usable_probes(Table(3), probes_of(["x:float32[batch,t]"]), [])
    assert isinstance(caught.value.__cause__, IndexError)
    assert "--input" in caught.value.hint


def test_an_error_of_our_own_is_passed_on():
    class Text(nn.Module):
        def forward(self, x):
            return "text"

    with pytest.raises(ModelOutputError, match="the model returns a str"):
        usable_probes(Text(), probes_of(["x:float32[batch,t]"]), [])


def found_probes(module, inputs, **options):
    sizes = {"batch": 3, "t": 16}
    return find_probes(module, parse_inputs(inputs), (), 3, example_sizes=sizes, dim_ranges=OPEN, **options)


def test_dims_other_than_the_batch_are_tried_far_from_the_example_if_the_model_takes_it():
    inputs = ["x:float32[batch,t]"]
    assert {probe.sizes["t"] for probe in found_probes(Table(99), inputs).probes} == {1, 15, 16, 17, 34, 35}
    found = found_probes(Table(17), inputs)
    assert {probe.sizes["t"] for probe in found.probes} == {1, 15, 16, 17}
    assert found.warnings == ()  # nobody asked for 35


class Multiple(nn.Module):
    def forward(self, x):
        return x.view(x.shape[0] // 3, 3, -1).sum(1)


def test_a_model_that_takes_hardly_any_batch_size_is_tried_at_multiples():
    found = found_probes(Multiple(), ["x:float32[batch,4]"])
    assert {probe.batch for probe in found.probes} == {3, 6, 9}
    assert "not compared at batch 1; batch 2; batch 7; batch 13, which the model itself refuses: " in found.warnings[0]
    assert "(test_probes.py:" in found.warnings[0]


class Masked(nn.Module):
    def forward(self, x, mask):
        return x.masked_fill(mask, float("-inf")).softmax(-1)


def test_masks_are_drawn_so_that_the_answers_are_finite():
    inputs = ["x:float32[batch,t]", "mask:bool[batch,t]"]
    found = found_probes(Masked(), inputs)
    assert {probe.sizes["t"] for probe in found.probes} == {2, 15, 16, 17, 34, 35}
    assert all(torch.isfinite(Masked()(**probe.feed)).all() for probe in found.probes)
    assert any(probe.feed["mask"].any() for probe in found.probes)


def test_integers_are_drawn_from_the_whole_of_their_range():
    ranges = {"ids": IntegerRange(torch.tensor([[0, 5]]), torch.tensor([[9, 300]]))}
    ids = torch.cat([probe.feed["ids"] for probe in probes_of(["ids:int32[batch,2]"], batches=(99,), ranges=ranges)])
    assert ids.dtype is torch.int32
    assert ids[:, 0].unique().tolist() == list(range(9))
    assert (ids[:, 0] < 2).float().mean() > 0.3  # 0 and 1 often mean something: padding, the unknown word
    assert ids[:, 1].min() >= 5
    assert 250 < ids[:, 1].max() < 300


def test_offsets_of_bags_rise_from_0_to_the_number_of_ids():
    probes = probes_of(["ids:int64[t]", "starts:int64[batch]"], ranges={"starts": BagOffsets("ids", has_end=True)})
    for probe in probes:
        starts = probe.feed["starts"]
        assert starts.equal(starts.sort().values)
        assert starts[-1] == probe.sizes["t"]
        assert len(starts) == 1 or starts[0] == 0


def test_rows_that_another_input_points_at_do_not_repeat():
    """The rows of a larger batch are those of a smaller one, over and over; row numbers beside them are not."""
    from ensexport.probes import _cheap

    for spec, base in (("ids:int64[count]", None), ("scale:float32[count]", 0)):
        specs = parse_inputs(["x:float32[batch,3]", spec])
        ends = {"batch": (1, None), "count": (1, None)}
        sizes = {"batch": 3, "count": 4}
        probes = make_probes(specs, (), 2, example_sizes=sizes, dim_ranges=ends, batches=(1, 2, 3, 7))
        assert {probe.base for probe in _cheap(probes, specs, ())[1:]} == {base}


def test_batch_sizes_whose_activations_take_gigabytes_are_left_out_and_said():
    assert batches_that_fit(BATCHES, lambda batch: batch * 1000) == (BATCHES, ())
    assert batches_that_fit(BATCHES, lambda batch: batch * 140_000_000)[0] == (1, 2, 3, 7)
    kept, (text,) = batches_that_fit(BATCHES, lambda batch: batch * 10**9)
    assert kept == (1, 2, 3)  # a dynamic batch shows at these
    assert text.startswith("not compared at batch 7, 13, where the members' activations take about 7.0 GB and more")


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, {0, 1, 2, 3, 4, 5}), (9.0, {0, 2, 4})], ids=["all", "few"])
def test_slow_files_are_run_at_the_smallest_batch_sizes_once(seconds: float, expected: set[int]) -> None:
    sizes = {"example_sizes": {"batch": 2}, "dim_ranges": {"batch": (1, None)}}
    probes = make_probes(parse_inputs(["x:float32[batch,1]"]), (), 1, **sizes, batches=(1, 2, 7), seeds=(0, 1))
    assert set(few_probes(probes, seconds)) == expected
