"""The members curve: known answers, and the same as scikit-learn and NumPy say of the members' outputs."""

import itertools
import sys

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss, root_mean_squared_error

from ensexport.bench.curve import choose_subsets, measure_curve
from ensexport.bench.curve_measures import ClassMeasures, load_metrics
from ensexport.bench.report import BenchReport, Row
from ensexport.errors import ArtifactError, DataError, OutputError, UsageError
from ensexport.timing.measure import Timing
from tests.bench.curves import random_classes, saved, shifted, softmax, with_metadata
from tests.bench.graphs import node, tensor, write
from tests.bench.test_run import pack
from tests.cli.projects import X


def means(curve, name):
    return {point.k: point.measures[name]["mean"] for point in curve.points}


def test_three_members_and_four_rows_by_hand(tmp_path):
    """Members 0 and 1 say what the row says; member 2 says class 1 wherever class 0 leads by less than 4."""
    artifact = shifted(tmp_path / "e.onnx", [[0, 0], [0, 0], [0, 4]])
    x = np.array([[8, 0], [2, 0], [0, 1], [0, 9]], np.float32)
    data = saved(tmp_path / "d.npz", x=x, labels=np.array([0, 0, 1, 0]))
    curve = measure_curve(artifact, data)
    assert [(point.k, point.n_subsets) for point in curve.points] == [(1, 3), (2, 3), (3, 1)]
    # All three average row 1 to (2 * 0.88 + 0.12) / 3 > 1/2: class 0. Member 2 alone says 1 there.
    assert curve.points[0].measures["agreement"] == {"mean": pytest.approx(11 / 12), "min": 0.75, "max": 1.0}
    assert curve.points[0].measures["accuracy"] == {"mean": pytest.approx(8 / 12), "min": 0.5, "max": 0.75}
    assert curve.points[2].measures["agreement"] == {"mean": 1, "min": 1, "max": 1}
    assert means(curve, "accuracy")[3] == 0.75
    assert (curve.kind, curve.n_rows, curve.output, curve.has_labels) == ("classes", 4, "y", True)


def ece(probabilities, labels, n_bins=15):
    confidences, right = probabilities.max(1), probabilities.argmax(1) == labels
    places = np.digitize(confidences, np.linspace(0, 1, n_bins + 1)[1:-1])
    bins = [places == place for place in range(n_bins)]
    return sum(
        chosen.mean() * abs(right[chosen].mean() - confidences[chosen].mean()) for chosen in bins if chosen.any()
    )


def test_measures_are_those_of_scikit_learn_and_numpy(tmp_path):
    x, biases, labels = random_classes()
    artifact = shifted(tmp_path / "e.onnx", biases)
    curve = measure_curve(artifact, saved(tmp_path / "d.npz", x=x, labels=labels))
    members = softmax((x + biases[:, None]).astype(np.float64))
    for point in curve.points:
        subsets = [members[list(chosen)].mean(0) for chosen in itertools.combinations(range(4), point.k)]
        assert point.n_subsets == len(subsets)
        expected = {
            "agreement": [(p.argmax(1) == members.mean(0).argmax(1)).mean() for p in subsets],
            "accuracy": [accuracy_score(labels, p.argmax(1)) for p in subsets],
            "nll": [log_loss(labels, p, labels=range(5)) for p in subsets],
            "ece": [ece(p, labels) for p in subsets],
        }
        assert set(point.measures) == set(expected)
        for name, values in expected.items():
            found = point.measures[name]
            assert found["mean"] == pytest.approx(np.mean(values), abs=1e-6)
            assert (found["min"], found["max"]) == pytest.approx((min(values), max(values)), abs=1e-6)


def test_without_labels_there_is_agreement_alone(tmp_path, monkeypatch):
    x, biases, _ = random_classes()
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    curve = measure_curve(shifted(tmp_path / "e.onnx", biases), saved(tmp_path / "d.npz", x=x))
    assert {name for point in curve.points for name in point.measures} == {"agreement"}
    assert curve.points[-1].measures["agreement"]["mean"] == 1
    assert not curve.has_labels


def test_values_are_compared_with_all_members_and_with_labels(tmp_path):
    x, biases, _ = random_classes(n_members=3)
    labels = x + 0.1 * tensor(*x.shape, seed=3)
    curve = measure_curve(shifted(tmp_path / "e.onnx", biases), saved(tmp_path / "d.npz", x=x, labels=labels))
    assert curve.kind == "values"
    members = (x + biases[:, None]).astype(np.float64)
    everyone = members.mean(0)
    for point in curve.points:
        subsets = [members[list(chosen)].mean(0) for chosen in itertools.combinations(range(3), point.k)]
        deviations = [np.sqrt(((p - everyone) ** 2).mean()) / everyone.std() for p in subsets]
        errors = [root_mean_squared_error(labels.ravel(), p.ravel()) for p in subsets]
        assert point.measures["deviation"]["mean"] == pytest.approx(np.mean(deviations), rel=1e-5, abs=1e-12)
        assert point.measures["rmse"]["max"] == pytest.approx(max(errors), rel=1e-5)
    assert curve.points[-1].measures["deviation"] == {"mean": 0, "min": 0, "max": 0}


def test_one_value_a_row_has_no_classes(tmp_path):
    curve = measure_curve(shifted(tmp_path / "e.onnx", [[0], [2]]), saved(tmp_path / "d.npz", x=np.ones((3, 1), "f4")))
    assert (curve.kind, set(curve.points[0].measures)) == ("values", {"deviation"})
    assert np.isnan(means(curve, "deviation")[1])  # all rows are alike: nothing to be a share of
    assert means(curve, "deviation")[2] == 0


def test_many_calls_are_one_set_of_rows(tmp_path, monkeypatch):
    x, biases, labels = random_classes(rows=151)
    artifact, data = shifted(tmp_path / "e.onnx", biases), saved(tmp_path / "d.npz", x=x, labels=labels)
    at_once = measure_curve(artifact, data)
    monkeypatch.setattr("ensexport.input_data._ROWS", 10)
    monkeypatch.setattr("ensexport.bench.curve_outputs._VALUES", 500)
    seen = []
    in_parts = measure_curve(artifact, data, on_stage=lambda *stage: seen.append(stage))
    assert len(seen) > 5
    assert (seen[0], seen[-1]) == (("curve", 0, 151), ("curve", 151, 151))
    for one, other in zip(at_once.points, in_parts.points, strict=True):
        for name, spread in one.measures.items():
            assert other.measures[name] == pytest.approx(spread, abs=1e-6)


def test_a_pixel_is_a_row_where_labels_are_maps(tmp_path):
    """Classes in the middle, one label a pixel; the same as the pixels one by one."""
    biases = tensor(3, 4, 2, 2, seed=1)
    x, labels = tensor(6, 4, 2, 2), np.arange(24).reshape(6, 2, 2) % 4
    emit = [{"output": "y", "names": ["members"], "class_axis": 1}]
    artifact = shifted(tmp_path / "e.onnx", biases, emit=emit)
    curve = measure_curve(artifact, saved(tmp_path / "d.npz", x=x, labels=labels))
    logits = np.moveaxis((x + biases[:, None]).astype(np.float64), 2, -1).reshape(3, -1, 4)
    expected = log_loss(labels.ravel(), softmax(logits).mean(0), labels=range(4))
    assert means(curve, "nll")[3] == pytest.approx(expected, rel=1e-6)


def test_per_member_inputs(tmp_path):
    x = tensor(2, 5, 3)
    artifact = shifted(tmp_path / "e.onnx", np.zeros((2, 3)), per_member=True)
    curve = measure_curve(artifact, saved(tmp_path / "d.npz", x=x))
    everyone = softmax(x.astype(np.float64)).mean(0).argmax(1)
    assert means(curve, "agreement")[1] == pytest.approx((x.argmax(-1) == everyone).mean())


def test_the_first_output_with_classes_is_taken_or_the_one_that_is_named(tmp_path):
    path = tmp_path / "e.onnx"
    nodes = [
        node("Add", "x,bias", "y"),
        node("ReduceSum", "y,axis", "total", keepdims=1),
        node("ArgMax", "y", "best", axis=-1),
    ]
    weights = {"bias": tensor(2, 1, 3), "axis": np.array([-1])}
    write(path, nodes, {"x": ["batch", 3]}, ["best", "total", "y"], weights)
    with_metadata(path, 2, ["x:float32[batch,3]"], outputs=["best", "total", "y"])
    data = saved(tmp_path / "d.npz", x=tensor(7, 3, seed=4))
    assert measure_curve(path, data).output == "y"
    named = measure_curve(path, data, output="total")
    assert (named.output, named.kind) == ("total", "values")
    with pytest.raises(UsageError, match=r"no output 'other' for --curve-output: expected one of best, total, y"):
        measure_curve(path, data, output="other")
    with pytest.raises(UsageError, match=r"cannot average 'best' of int64: expected an output of floats"):
        measure_curve(path, data, output="best")


@pytest.mark.parametrize("artifact", ["h.onnx", "h.ts", "h.pt2"])
def test_members_behind_combined_outputs_count(project, artifact):
    pack("--input", X, "-o", "e.onnx")
    more = ("--member-weights", "input") if artifact == "h.pt2" else ("--member-axis", 1)
    pack("--input", X, "--emit", "probs,entropy", *more, "-o", artifact)
    data = saved(project / "d.npz", x=tensor(20, 4), labels=np.arange(20) % 3)
    plain, hidden = measure_curve("e.onnx", data), measure_curve(artifact, data)
    for one, other in zip(plain.points, hidden.points, strict=True):
        for name, spread in one.measures.items():
            assert other.measures[name] == pytest.approx(spread, abs=1e-5)


def test_weights_and_arrays_that_are_not_used_are_said(tmp_path):
    artifact = shifted(tmp_path / "e.onnx", [[0, 0], [1, 0]], member_weights=[1.0, 3.0])
    curve = measure_curve(artifact, saved(tmp_path / "d.npz", x=tensor(4, 2), ids=np.arange(4)))
    unused, weights = curve.warnings
    assert "d.npz': the array 'ids' is neither an input nor the labels" in unused
    assert "counts all members alike, not by the weights" in weights


LABELS = {
    "too large": (np.array([0, 5, 0]), r"hold 5: expected classes from 0 to 1, of the output 'y'"),
    "negative": (np.array([0, 0, -1]), r"hold -1: expected classes from 0 to 1"),
    "a class a column": (np.zeros((3, 2), np.int64), r"expected the shape \(3,\) for int64, got \(3, 2\)"),
    "a value too few": (np.zeros(3), r"expected the shape \(3, 2\) for float64, got \(3,\)"),
}


@pytest.mark.parametrize(("labels", "message"), LABELS.values(), ids=LABELS)
def test_labels_that_do_not_fit_the_output_are_refused(tmp_path, labels, message):
    artifact = shifted(tmp_path / "e.onnx", [[0, 0], [1, 0]])
    with pytest.raises(DataError, match=message):
        measure_curve(artifact, saved(tmp_path / "d.npz", x=tensor(3, 2), labels=labels))


def test_classes_of_an_output_without_are_refused(tmp_path):
    data = saved(tmp_path / "d.npz", x=tensor(3, 1), labels=np.zeros(3, np.int64))
    with pytest.raises(DataError, match=r"the output 'y' has no classes: expected floats of shape \(3, 1\), got int64"):
        measure_curve(shifted(tmp_path / "e.onnx", [[0], [1]]), data)


def test_a_member_that_returns_nan_is_named(tmp_path):
    artifact = shifted(tmp_path / "e.onnx", [[0, 0], [np.inf, 0]])
    x = np.array([[0, 0], [-np.inf, 0]], np.float32)
    with pytest.raises(DataError, match=r"member 1 returns NaN in 'y' for row 1 of '.*d\.npz'"):
        measure_curve(artifact, saved(tmp_path / "d.npz", x=x))


def test_an_artifact_that_fails_on_the_data_is_said_with_the_rows(tmp_path):
    path = write(tmp_path / "e.onnx", [node("Gather", "table,x", "y", axis=1)], {"x": (["batch"], 7)}, ["y"],
                 {"table": tensor(2, 4, 3)})  # fmt: skip
    with_metadata(path, 2, ["x:int64[batch]"])
    with pytest.raises(ArtifactError, match=r"e\.onnx' fails on rows 0 to 2 of '.*d\.npz': .*Gather"):
        measure_curve(path, saved(tmp_path / "d.npz", x=np.array([0, 3, 9])))


def test_an_output_without_rows_is_refused(tmp_path):
    path = write(tmp_path / "e.onnx", [node("ReduceSum", "x,axis", "s", keepdims=0), node("Add", "s,bias", "y")],
                 {"x": ["batch", 2]}, ["y"], {"axis": np.array([0, 1]), "bias": tensor(2)})  # fmt: skip
    with_metadata(path, 2, ["x:float32[batch,2]"])
    with pytest.raises(UsageError, match=r"the output 'y' has no entry a row: expected \(2, 3, \.\.\.\) for 2 members"):
        measure_curve(path, saved(tmp_path / "d.npz", x=tensor(3, 2)))


def test_subsets_are_all_there_are_or_random_ones_without_repeats():
    assert choose_subsets(3, 2, 20) == [(0, 1), (0, 2), (1, 2)]
    chosen = choose_subsets(10, 5, 20)
    assert chosen == choose_subsets(10, 5, 20)
    assert chosen != choose_subsets(10, 5, 20, seed=1)
    assert len(set(chosen)) == 20
    assert all(len(set(subset)) == 5 and set(subset) <= set(range(10)) for subset in chosen)
    assert len(choose_subsets(6, 3, 20)) == 20
    assert choose_subsets(7, 7, 1) == [tuple(range(7))]


def test_chosen_sizes_only(tmp_path):
    artifact, data = shifted(tmp_path / "e.onnx", tensor(5, 2)), saved(tmp_path / "d.npz", x=tensor(3, 2))
    assert measure_curve(artifact, data, sizes=(5, 2, 2)).sizes == (2, 5)
    with pytest.raises(UsageError, match="cannot measure 6 members: expected 1 to 5"):
        measure_curve(artifact, data, sizes=(6,))


def test_the_json_form_puts_times_beside_measures(tmp_path):
    artifact, data = shifted(tmp_path / "e.onnx", [[0, 0], [1, 0]]), saved(tmp_path / "d.npz", x=tensor(3, 2))
    rows = [Row(1, k, Timing(name, k * ms, 1, 1, 1)) for k in (1, 2) for name, ms in (("packed", 2.0), ("loop", 3.0))]
    found = measure_curve(artifact, data).to_dict(BenchReport(tuple(rows), {}, {}))
    assert [(p["k"], p["subsets"], p["latency_ms"], p["loop_ms"]) for p in found["members_curve"]] == [
        (1, 2, 2.0, 3.0), (2, 1, 4.0, 6.0),
    ]  # fmt: skip
    assert found["members_curve"][1]["agreement"] == {"mean": 1, "min": 1, "max": 1}
    assert found["members_curve"][1]["accuracy"] is found["members_curve"][1]["rmse"] is None
    assert found["curve_data"] == {
        "path": str(data), "rows": 3, "output": "y", "kind": "classes", "has_labels": False, "batch": 1,
    }  # fmt: skip


def test_torchmetrics_missing_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    with pytest.raises(OutputError, match="torchmetrics is not installed") as caught:
        ClassMeasures(3, has_labels=True)
    assert (caught.value.hint, caught.value.exit_code) == ('Run: pip install "ensexport[metrics]"', 7)


def test_torchmetrics_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "torchmetrics.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(OutputError, match=r"cannot be imported: operator torchvision::nms does not exist\.") as caught:
        load_metrics()
    assert "torchvision" in caught.value.hint
