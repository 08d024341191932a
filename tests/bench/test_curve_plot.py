"""Drawings of members curves."""

import math
import xml.etree.ElementTree as ElementTree

import pytest

from ensexport.bench.curve_plot import draw_curve
from ensexport.errors import UsageError
from tests.bench.test_plot import SVG, panels

CLASSES = ("agreement", "accuracy", "nll", "ece")
ALL = (*CLASSES, "deviation", "rmse")


def report(measures=CLASSES, n=4, loop=2.0, **values):
    points = [
        {
            "k": k, "subsets": 3, **dict.fromkeys(ALL), "latency_ms": 0.1 * k, "loop_ms": loop and loop * k,
            **{name: {"mean": 0.5 + k / 100, "min": 0.4, "max": 0.6, **values} for name in measures},
        }
        for k in range(1, n + 1)
    ]  # fmt: skip
    return {
        "members_curve": points, "artifact": "folder/<e>.onnx", "environment": {"processor": "A & B"},
        "curve_data": {"path": "folder/test.npz", "rows": 7, "batch": 1},
    }  # fmt: skip


def drawn(tmp_path, value, suffix=".svg"):
    path = tmp_path / f"curve{suffix}"
    draw_curve(value, path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_the_same_numbers_give_the_same_bytes(tmp_path, suffix):
    first = drawn(tmp_path, report(), suffix).read_bytes()
    assert drawn(tmp_path, report(), suffix).read_bytes() == first
    assert drawn(tmp_path, report(n=3), suffix).read_bytes() != first


@pytest.mark.parametrize(
    ("measures", "expected"),
    [(CLASSES, 4), (("agreement",), 2), (("deviation", "rmse"), 3), (("deviation",), 2)],
    ids=["classes", "no labels", "values", "values without labels"],
)
def test_quality_has_its_panels_and_time_one(tmp_path, measures, expected):
    assert len(panels(drawn(tmp_path, report(measures)))) == expected


def test_one_size_no_loop_and_infinite_losses_can_be_drawn(tmp_path):
    for value in (report(n=1), report(loop=None), report(mean=math.inf, max=math.inf)):
        assert next(ElementTree.parse(drawn(tmp_path, value)).iter(f"{SVG}g")) is not None


def test_a_drawing_of_ten_members_is_small_enough_for_a_repository(tmp_path):
    assert drawn(tmp_path, report(n=10)).stat().st_size < 60_000


def test_the_page_holds_the_table(tmp_path):
    text = drawn(tmp_path, report(), ".html").read_text()
    assert "<h1>Members curve of &lt;e&gt;.onnx</h1>" in text
    assert "mean and range of up to 3 subsets, 7 rows" in text
    assert text.count("<svg") == 1
    assert '<tr><td class="number">2</td><td class="number">3</td><td class="number">0.52</td>' in text
    assert "<td>processor</td><td>A &amp; B</td>" in text


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"expected a file that ends in \.png, \.svg, \.html"):
        draw_curve(report(), tmp_path / "c.pdf")
