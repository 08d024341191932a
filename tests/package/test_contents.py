"""The manifest's entries, and the card made of them."""

import pytest

from ensexport.errors import UsageError
from ensexport.package.card import card_text
from ensexport.package.contents import created, libraries, validation_entry
from ensexport.package.manifest import manifest_text, read_manifest
from ensexport.spec import Check, ValidationReport
from tests.package.manifests import make_manifest


def test_a_date_is_written_only_where_builds_are_pinned(monkeypatch):
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert created() is None
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert created() == "2023-11-14T22:13:20Z"
    for text in ("", "-1", "1e9", "yesterday", "999999999999"):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", text)
        with pytest.raises(UsageError, match="cannot read SOURCE_DATE_EPOCH"):
            created()


def test_the_versions_are_those_that_run():
    import numpy
    import onnxruntime

    assert libraries()["numpy"] == numpy.__version__
    assert libraries()["onnxruntime"] == onnxruntime.__version__


def check(**changes):
    values = {"artifact": "pkg/model.onnx", "provider": "CPU", "batch": 2, "member_index": 0, "output": "y",
              "max_abs": 1e-6, "max_rel": 1e-7, "bound": 1e-5, "passed": True, "optimization": "all"}  # fmt: skip
    return Check(**(values | changes))


def test_the_proof_in_short_has_one_row_a_file_level_and_output():
    checks = (
        check(),
        check(member_index=1, max_rel=3e-7, max_abs=2e-6, batch=1, seed=2),
        check(optimization="disabled"),
        check(output="z"),
        check(artifact="other.onnx", max_rel=1.0, passed=False),
    )
    entry = validation_entry(ValidationReport(checks), {"pkg/model.onnx": "model.onnx"})
    assert (entry["passed"], entry["batches"], entry["seeds"], entry["max_error"]) == (True, [1, 2], [0, 2], 3e-7)
    rows = [(row["file"], row["optimization"], row["output"], row["comparisons"]) for row in entry["table"]]
    assert rows == [
        ("model.onnx", "all", "y", 2),
        ("model.onnx", "disabled", "y", 1),
        ("model.onnx", "all", "z", 1),
    ]
    assert (entry["table"][0]["max_abs"], entry["table"][0]["max_rel"]) == (2e-6, 3e-7)


def test_without_a_comparison_nothing_is_claimed():
    entry = validation_entry(ValidationReport((), {}, ()), {})
    assert (entry["passed"], entry["members"], entry["table"]) == (None, [], [])


def test_the_card_says_what_the_manifest_says(tmp_path):
    manifest = make_manifest()
    (tmp_path / "manifest.json").write_text(manifest_text(manifest))
    text = card_text(read_manifest(tmp_path), ["Requests are batched."])
    assert text.startswith("# Ensemble of 2 networks in one graph\n")
    for line in (
        "| `x` | float32 | (batch, 4) | input |",
        "| `output` | float32 | (2, batch, 3) | output: y_k |",
        "`batch` is dynamic: 1 to any size.",
        "- Requests are batched.",
        f"| 1 | m1.pt | `{'0' * 64}` |",
        "| model.onnx | CPUExecutionProvider | all | `output` | 4 | 1e-07 | 1e-05 |",
        "onnx 1.23.2, python 3.11.7; for portable, strategy auto, opset 20.",
    ):
        assert f"\n{line}\n" in text


def test_the_card_of_an_unproven_package_says_so_in_capitals():
    manifest = make_manifest()
    manifest["validation"] |= {"passed": None, "members": [], "table": []}
    assert "\nNONE: nothing was compared with the members." in card_text(manifest)


def test_a_name_cannot_break_the_card():
    manifest = make_manifest()
    manifest["members"][0]["name"] = "fold_0/a|b\n# c.pt"
    assert r"| 0 | fold_0/a\|b # c.pt |" in card_text(manifest)


def test_many_members_are_cut_short_in_the_card():
    manifest = make_manifest()
    manifest["members"] = [dict(manifest["members"][0], index=k) for k in range(103)]
    text = card_text(manifest)
    assert "| 99 |" in text
    assert "| 100 |" not in text
    assert "and 3 more: `manifest.json` has all" in text
