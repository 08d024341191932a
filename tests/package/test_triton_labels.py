import numpy as np
import pytest

from ensexport.emission import QUANTITIES
from ensexport.errors import TritonError, UsageError
from ensexport.package.triton import ServingOptions, triton_files
from tests.package import triton_rules
from tests.package.triton_manifests import make_manifest, make_samples, tensor

SCORES = {"mean", "min", "max", "median", "probs", "logprobs", "vote"}


def label(manifest, labels, **options):
    """Return output -> its label file, and the files."""
    made = triton_files(manifest, make_samples(manifest), labels=labels, options=ServingOptions(**options))
    config = triton_rules.parse(made.files["config.pbtxt"])
    return {io.name: io.label_filename for io in config.output if io.label_filename}, made.files


def emitting(*names, **changes):
    """A manifest that emits names of an output `y`, three members and three classes, the batch first."""
    shapes = {"members": ("batch", 3, 3)} | {
        name: ("batch",) for name in QUANTITIES if "entropy" in name or "mutual" in name
    }
    outputs = [tensor("y" if name == "members" else f"y.{name}", *shapes.get(name, ("batch", 3))) for name in names]
    return make_manifest(outputs=outputs, emit=[{"output": "y", "names": list(names), "class_axis": -1}], **changes)


def test_outputs_of_one_score_a_class_are_labelled():
    names = [name for name in QUANTITIES if name != "members"] + ["q10"]
    places, files = label(emitting(*names), ["cat", "dog", "eel"])
    assert places == {f"y.{name}": "labels.txt" for name in [*SCORES, "q10"]}
    assert files["labels.txt"] == b"cat\ndog\neel\n"
    assert "labels_members.txt" not in files


def test_members_that_are_batched_have_a_line_a_member_and_class():
    places, files = label(emitting("members", "probs"), ["cat", "dog", "eel"])
    assert places == {"y": "labels_members.txt", "y.probs": "labels.txt"}
    lines = files["labels_members.txt"].decode().splitlines()
    scores = np.zeros((1, 3, 3), np.float32)
    scores[0, 2, 1] = 1
    assert triton_rules.classify(scores, 1, lines, is_batched=True).tolist() == [[b"1.000000:7:dog (member 2)"]]


def test_of_several_outputs_those_with_as_many_classes_are_labelled():
    manifest = make_manifest(
        outputs=[tensor("a.probs", "batch", 3), tensor("b.probs", "batch", 2)],
        emit=[{"output": name, "names": ["probs"], "class_axis": -1} for name in "ab"],
    )
    assert label(manifest, ["yes", "no"])[0] == {"b.probs": "labels.txt"}
    with pytest.raises(TritonError) as caught:
        label(manifest, ["one"])
    assert "expected 3 (output 'a.probs') or 2 (output 'b.probs') labels, got 1. Give one label a class." in str(
        caught.value
    )


@pytest.mark.parametrize("count", [0, 2, 4])
def test_as_many_labels_as_classes_are_expected(count):
    with pytest.raises(
        TritonError, match=rf"cannot label an output: expected 3 \(output 'y.probs'\) labels, got {count}"
    ):
        label(emitting("probs"), ["x"] * count)


@pytest.mark.parametrize(
    ("manifest", "options"),
    [
        (emitting("entropy", "std"), {}),
        (emitting("probs"), {"max_batch_size": 0}),
        (make_manifest(outputs=[tensor("y.probs", "batch", 3, 8, 8)]), {}),
        (make_manifest(outputs=[tensor("y.probs", "batch", "seq")]), {}),
        (emitting("members") | {"outputs": [tensor("y", 3, "batch", 3)]}, {}),
    ],
    ids=["no scores", "not batched", "pixels", "dynamic", "members first"],
)  # fmt: skip
def test_without_an_output_that_triton_can_label_labels_are_refused(manifest, options):
    with pytest.raises(
        TritonError, match="cannot label an output: Triton labels one score a class, and the outputs are 'y"
    ):
        label(manifest, ["a", "b", "c"], **options)


def test_a_model_without_any_batch_can_be_labelled():
    manifest = make_manifest([tensor("x", 4)], [tensor("y.probs", 3)])
    assert label(manifest, ["a", "b", "c"])[0] == {"y.probs": "labels.txt"}


def test_labels_may_have_colons_and_letters_of_any_script():
    _, files = label(emitting("probs"), ["a:b", "猫", "two words"])
    assert files["labels.txt"].decode() == "a:b\n猫\ntwo words\n"


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\rb", "\x1b[0m", "a\u2028b"], ids=ascii)
def test_labels_that_are_no_line_are_refused(text):
    with pytest.raises(UsageError) as caught:
        label(emitting("probs"), ["a", text, "c"])
    assert f"label 1 is {text!r}: expected a text in one line." in str(caught.value)
