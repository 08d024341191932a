"""Where the values of an ONNX file lie, and what is refused of files that anybody may have made."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ensexport.errors import ArtifactError
from ensexport.targets.onnx_places import find_places

VALUES = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "ids": np.array([[1, -2]], dtype=np.int64),
    "half": np.array([1.5, 2.5, 3.5], dtype=np.float16),
    "one": np.array(7.0, dtype=np.float64),
    "none": np.zeros((0, 4), dtype=np.float32),
}


def _model(values: dict[str, np.ndarray] = VALUES) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in values.items()]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, ["batch"])],
        [value("y", TensorProto.FLOAT, ["batch"])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def _saved(tmp_path: Path, *, external: bool = False) -> Path:
    path = tmp_path / "m.onnx"
    options = {"save_as_external_data": True, "location": "m.onnx.data", "size_threshold": 0} if external else {}
    onnx.save(_model(), path, **options)
    return path


@pytest.mark.parametrize("external", [False, True], ids=["in-file", "external"])
def test_the_places_hold_the_values(tmp_path: Path, external: bool) -> None:
    path = _saved(tmp_path, external=external)
    places = find_places(path)
    assert set(places.initializers) == set(VALUES)
    for name, value in VALUES.items():
        place = places.initializers[name]
        data = place.file.read_bytes()[place.offset : place.offset + place.n_bytes]
        assert data == value.tobytes(), name
        assert (place.shape, place.data_type) == (value.shape, helper.np_dtype_to_tensor_dtype(value.dtype))
        assert place.file.name == ("m.onnx.data" if external else "m.onnx")
    assert places.data == ((tmp_path / "m.onnx.data",) if external else ())


def test_behind_the_graph_stand_the_fields_with_higher_numbers(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    behind = onnx.ModelProto()
    behind.ParseFromString(path.read_bytes()[find_places(path).graph_end :])
    assert [field.name for field, _ in behind.ListFields()] == ["opset_import"]


def test_values_that_are_no_raw_bytes_have_no_place(tmp_path: Path) -> None:
    model = _model({})
    model.graph.initializer.append(helper.make_tensor("listed", TensorProto.FLOAT, [2], [1.0, 2.0]))
    onnx.save(model, tmp_path / "m.onnx")
    assert find_places(tmp_path / "m.onnx").initializers == {}


def test_a_cut_off_file_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    path = _saved(tmp_path)
    whole = path.read_bytes()
    end = find_places(path).graph_end
    for length in range(end):
        path.write_bytes(whole[:length])
        with pytest.raises(ArtifactError, match="as ONNX it is damaged"):
            find_places(path)


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_are_refused_or_read_but_never_lead_out_of_the_file(tmp_path: Path, seed: int) -> None:
    path = _saved(tmp_path)
    whole = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    for _ in range(200):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            damaged[place] = random.integers(0, 256)
        path.write_bytes(damaged)
        try:
            places = find_places(path)
        except ArtifactError:
            continue
        for place in places.initializers.values():
            assert place.file != path or 0 <= place.offset <= place.offset + place.n_bytes <= len(damaged)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("../secret", "no file beside it"), ("/etc/passwd", "no file beside it"), ("a\\b", "no file beside it"),
        ("..", "no file beside it"), ("", "no file beside it"), ("gone.data", "'gone.data' is missing"),
        ("link.data", "'link.data' is a link"),
    ],
    ids=["up", "absolute", "windows", "dots", "empty", "missing", "link"],
)  # fmt: skip
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, message: str) -> None:
    path = _saved(tmp_path, external=True)
    (tmp_path / "link.data").symlink_to(tmp_path / "m.onnx.data")
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=message):
        find_places(path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("length", "9999", "ends before the values of 'ids': expected"),
        ("offset", "99999999", "ends before the values of 'ids': expected"),
        ("offset", "1", "the values of 'w' and 'ids' overlap in 'm.onnx.data'"),
        ("offset", "-1", "is said with no numbers"),
        ("length", "1e3", "is said with no numbers"),
        ("length", "9" * 30, "is said with no numbers"),
    ],
    ids=["long", "far", "overlap", "negative", "float", "huge"],
)
def test_ranges_of_external_data_are_checked(tmp_path: Path, key: str, value: str, message: str) -> None:
    path = _saved(tmp_path, external=True)
    model = onnx.load(path, load_external_data=False)
    entry = next(entry for entry in model.graph.initializer[1].external_data if entry.key == key)
    entry.value = value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match=message):
        find_places(path)


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    model = _model()
    model.graph.initializer.append(model.graph.initializer[0])
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ArtifactError, match="the initializer 'w' stands in it twice"):
        find_places(tmp_path / "m.onnx")


def test_two_graphs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(_model().SerializeToString() * 2)
    with pytest.raises(ArtifactError, match="expected one graph, got 2"):
        find_places(tmp_path / "m.onnx")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read '.*gone\.onnx': No such file"):
        find_places(tmp_path / "gone.onnx")
