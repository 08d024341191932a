from pathlib import Path, PurePosixPath

import pytest

from ensexport.errors import UsageError
from ensexport.package.choice import (
    PackageChoice,
    is_package_target,
    parse_formats,
    plan_packages,
    read_labels,
)

BAD = {
    "layout": ({"layout": "zip"}, "unknown --layout 'zip': expected one of folder, triton"),
    "pt2-in-triton": ({"layout": "triton", "name": "a", "formats": ("pt2",)}, "--layout triton has no place for 'pt2'"),
    "no-name": ({"layout": "triton"}, "--layout triton needs the model's name"),
    "name-alone": ({"name": "a"}, "--name belongs to --layout triton"),
    "labels-alone": ({"labels": ("a",)}, "--labels belongs to --layout triton"),
    "batch-alone": ({"max_batch_size": 0}, "--max-batch-size belongs to --layout triton"),
    "slash": ({"layout": "triton", "name": "a/b"}, "cannot name a Triton model 'a/b': expected letters, digits"),
    "dots": ({"layout": "triton", "name": ".."}, "cannot name a Triton model '..'"),
}


@pytest.mark.parametrize(("values", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_made_is_refused(values, message):
    with pytest.raises(UsageError, match=message):
        PackageChoice(**values)


def test_formats_are_read_in_order_and_once():
    assert parse_formats("ts, onnx,ts") == ("torchscript", "onnx")
    assert parse_formats(["pt2"]) == ("pt2",)
    with pytest.raises(UsageError, match="unknown format 'engine' in --formats: expected names out of onnx, ts, pt2"):
        parse_formats("onnx,engine")


def test_an_output_without_a_suffix_is_a_package():
    assert [is_package_target(name) for name in ("pkg", "a.b/pkg/", "e.onnx", "pkg.zip")] == [True, True, False, False]


def test_a_folder_holds_all_formats():
    (plan,) = plan_packages(Path("pkg"), PackageChoice())
    assert (plan.target, plan.folder, plan.inside) == (Path("pkg"), Path("pkg"), PurePosixPath())
    assert {kind: str(name) for kind, name in plan.models.items()} == {"onnx": "model.onnx", "torchscript": "model.ts"}


def test_a_new_repository_is_put_in_place_whole_and_an_old_one_gets_one_more_model(tmp_path):
    choice = PackageChoice(layout="triton", name="fraud", formats=("onnx", "torchscript"))
    new = plan_packages(tmp_path / "repo", choice)
    assert [(plan.target, plan.folder) for plan in new] == [
        (tmp_path / "repo", tmp_path / "repo" / "fraud"),
        (tmp_path / "repo", tmp_path / "repo" / "fraud_torchscript"),
    ]
    (tmp_path / "repo").mkdir()
    old = plan_packages(tmp_path / "repo", choice)
    assert [(plan.target, plan.folder) for plan in old] == [
        (tmp_path / "repo" / "fraud", tmp_path / "repo" / "fraud"),
        (tmp_path / "repo" / "fraud_torchscript", tmp_path / "repo" / "fraud_torchscript"),
    ]
    assert [str(*plan.models.values()) for plan in old] == ["1/model.onnx", "1/model.pt"]


def test_labels_are_one_a_line(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("cat \ndog\n", encoding="utf-8")
    assert read_labels(path) == ("cat", "dog")
    path.write_text("cat\n\ndog\n", encoding="utf-8")
    with pytest.raises(UsageError, match="expected the name of a class on each line"):
        read_labels(path)
    with pytest.raises(UsageError, match="No such file"):
        read_labels(tmp_path / "none.txt")
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match="it is not UTF-8"):
        read_labels(path)
