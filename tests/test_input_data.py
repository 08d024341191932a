"""The data of a members curve: what fits is cut into calls, and what does not is refused with the array's name."""

import zipfile

import ml_dtypes
import numpy as np
import pytest

from ensexport.errors import DataError
from ensexport.input_data import read_data
from tests.bench.curves import saved


def metadata(*inputs, n_members=3, per_member=(), **dims):
    return {"inputs": list(inputs), "n_members": n_members, "per_member": list(per_member), "dims": dims}


X = metadata("x:float32[batch,4]", batch=[1, None])
ONES = np.ones((10, 4), np.float32)


def test_rows_are_cut_into_equal_calls(tmp_path, monkeypatch):
    monkeypatch.setattr("ensexport.input_data._ROWS", 4)
    x = np.arange(40, dtype=np.float32).reshape(10, 4)
    data = read_data(saved(tmp_path / "d.npz", x=x, labels=np.arange(10)), X)
    assert (data.n_rows, data.sizes, data.labels.tolist()) == (10, (4, 3, 3), list(range(10)))
    calls = list(data.calls())
    assert [begin for begin, _ in calls] == [0, 4, 7]
    assert np.array_equal(np.concatenate([feed["x"] for _, feed in calls]), x)


@pytest.mark.parametrize(
    ("batch", "rows", "sizes"),
    [([1, None], 5, (5,)), ([1, 2], 5, (2, 2, 1)), ([4, None], 9, (9,)), ([4, 5], 9, (5, 4)), ([2, 2], 4, (2, 2))],
)
def test_calls_keep_to_the_batch_sizes_that_the_artifact_takes(tmp_path, batch, rows, sizes):
    found = read_data(saved(tmp_path / "d.npz", x=ONES[:rows]), metadata("x:float32[batch,4]", batch=batch))
    assert found.sizes == sizes


def test_large_inputs_come_a_few_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("ensexport.input_data._VALUES", 4 * 3 * 2)
    assert read_data(saved(tmp_path / "d.npz", x=ONES), X).sizes == (2,) * 5


def test_a_fixed_batch_is_called_as_often_as_needed(tmp_path):
    fixed = metadata("x:float32[5,4]", "scale:float32[4]")
    data = read_data(saved(tmp_path / "d.npz", x=ONES, scale=ONES[0]), fixed)
    assert (data.n_rows, data.sizes, data.axes) == (10, (5, 5), {"x": 0, "scale": None})
    assert all(feed["scale"].shape == (4,) for _, feed in data.calls())
    with pytest.raises(DataError, match=r"expected shape \(rows, a multiple of 5, 4\), got \(9, 4\)"):
        read_data(saved(tmp_path / "d.npz", x=ONES[:9], scale=ONES[0]), fixed)


def test_per_member_inputs_and_rows_in_the_second_axis(tmp_path):
    given = metadata("x:float32[batch,4]", "h:float32[2,batch]", per_member=("x",), batch=[1, None])
    data = read_data(saved(tmp_path / "d.npz", x=np.ones((3, 7, 4), "f4"), h=np.ones((2, 7), "f4")), given)
    assert (data.n_rows, data.axes) == (7, {"x": 1, "h": 1})
    with pytest.raises(DataError, match=r"array 'x' .* expected shape \(3, rows, 4\), got \(2, 7, 4\)"):
        read_data(saved(tmp_path / "d.npz", x=np.ones((2, 7, 4), "f4"), h=np.ones((2, 7), "f4")), given)
    with pytest.raises(DataError, match=r"array 'h' .* expected 'batch' to be 7 as in 'x', got 6"):
        read_data(saved(tmp_path / "d.npz", x=np.ones((3, 7, 4), "f4"), h=np.ones((2, 6), "f4")), given)


def test_with_one_input_any_name_will_do(tmp_path):
    data = read_data(saved(tmp_path / "d.npz", images=ONES, y=np.zeros(10, int)), X)
    assert (list(data.inputs), data.n_rows, data.unused) == (["x"], 10, ())
    data = read_data(saved(tmp_path / "d.npz", x=ONES, ids=np.zeros(10)), X)
    assert (data.labels, data.unused) == (None, ("ids",))


def test_an_input_may_be_called_like_labels(tmp_path):
    data = read_data(saved(tmp_path / "d.npz", y=ONES), metadata("y:float32[batch,4]", batch=[1, None]))
    assert (list(data.inputs), data.labels) == (["y"], None)


def test_what_numpy_cannot_save_is_read_from_float32_and_other_byte_orders_are_read(tmp_path):
    halves = metadata("x:bfloat16[batch,4]", batch=[1, None])
    assert read_data(saved(tmp_path / "d.npz", x=ONES), halves).inputs["x"].dtype == ml_dtypes.bfloat16
    assert read_data(saved(tmp_path / "d.npz", x=ONES.astype(">f4")), X).inputs["x"].dtype == np.dtype("=f4")


NAN = np.where(np.arange(40).reshape(10, 4) == 6, np.nan, 1).astype(np.float32)
WRONG = {
    "no such input": ({"a": ONES, "b": ONES}, r"no array 'x': expected one for the input x:float32\[batch,4\], got"),
    "labels only": ({"labels": np.zeros(10, int)}, r"no array 'x': .* got 'labels'"),
    "nothing": ({}, r"no array 'x': .* got none"),
    "dtype": ({"x": ONES.astype("f8")}, r"array 'x' of '.*d\.npz' does not fit .*: expected float32, got float64"),
    "rank": ({"x": ONES[0]}, r"array 'x' .* expected shape \(rows, 4\), got \(4,\)"),
    "width": ({"x": ONES[:, :3]}, r"array 'x' .* expected shape \(rows, 4\), got \(10, 3\)"),
    "no rows": ({"x": ONES[:0]}, r"array 'x' .* expected at least one row, got \(0, 4\)"),
    "NaN": ({"x": NAN}, r"array 'x' of '.*d\.npz' holds NaN, first at index \(1, 2\)"),
    "labels' length": ({"x": ONES, "labels": np.zeros(9, int)}, r"'labels' .* expected 10 rows, got the shape \(9,\)"),
    "one label": ({"x": ONES, "y": np.array(1)}, r"labels 'y' .* expected 10 rows, got the shape \(\)"),
    "labels' dtype": ({"x": ONES, "labels": np.array(["a"] * 10)}, r"labels 'labels' .* expected integers .* got <U1"),
    "labels' NaN": ({"x": ONES, "labels": np.full(10, np.nan)}, r"array 'labels' .* holds NaN, first at index \(0,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("arrays", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as caught:
        read_data(saved(tmp_path / "d.npz", **arrays), X)
    assert caught.value.hint


def test_sizes_that_the_artifact_does_not_take_are_refused(tmp_path):
    tokens = metadata("x:int64[batch,steps]", batch=[4, None], steps=[2, 8])
    with pytest.raises(DataError, match=r"array 'x' .* expected 'steps' to be 2 to 8, got 9"):
        read_data(saved(tmp_path / "d.npz", x=np.zeros((6, 9), np.int64)), tokens)
    with pytest.raises(DataError, match=r"d\.npz' has 3 rows: expected at least 4, the artifact's smallest batch"):
        read_data(saved(tmp_path / "d.npz", x=np.zeros((3, 8), np.int64)), tokens)
    with pytest.raises(DataError, match=r"the input x:float32\[\] has no rows"):
        read_data(saved(tmp_path / "d.npz", x=np.float32(1)), metadata("x:float32[]"))


def truncated(path):
    saved(path, x=ONES)
    path.write_bytes(path.read_bytes()[:100])


def pickled(path):
    saved(path, x=np.array([{}], dtype=object))


def damaged(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': 'nonsense'}")


def not_arrays(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


FILES = {
    "missing": (lambda path: None, r"there is no such file"),
    "text": (lambda path: path.write_text("not an archive"), r"cannot read '.*d\.npz' as \.npz"),
    "empty": (lambda path: path.write_text(""), r"cannot read '.*d\.npz' as \.npz"),
    "folder": (lambda path: path.mkdir(), r"cannot read '.*d\.npz' as \.npz"),
    "cut": (truncated, r"cannot read '.*d\.npz' as \.npz"),
    "pickle": (pickled, r"cannot read the array 'x' of '.*d\.npz': Object arrays cannot be loaded"),
    "damaged": (damaged, r"cannot read the array 'x' of '.*d\.npz'"),
    "no arrays": (not_arrays, r"cannot read 'readme\.txt' of '.*d\.npz': it is no array"),
    "one array": (lambda path: np.save(path.open("wb"), ONES), r"it holds one array without a name"),
}


@pytest.mark.parametrize(("make", "message"), FILES.values(), ids=FILES)
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_file_that_cannot_be_read_is_refused(tmp_path, make, message):
    make(tmp_path / "d.npz")
    with pytest.raises(DataError, match=message):
        read_data(tmp_path / "d.npz", X)


def test_names_that_hold_line_breaks_cannot_fake_a_message(tmp_path):
    with pytest.raises(DataError) as caught:
        read_data(saved(tmp_path / "d\n.npz", **{"a\nerror": ONES, "b": ONES}), X)
    assert "\n" not in caught.value.message
