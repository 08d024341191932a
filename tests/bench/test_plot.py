"""Drawings of bench reports."""

import sys
import xml.etree.ElementTree as ElementTree

import pytest

from ensexport.bench.canvas import check_suffix
from ensexport.bench.plot import draw
from ensexport.errors import OutputError, UsageError

SVG = "{http://www.w3.org/2000/svg}"


def row(batch, n_members, alternative, ratio):
    return {
        "batch": batch, "n_members": n_members, "alternative": alternative, "median_ms": 0.1234 * ratio,
        "ratio": ratio, "ratio_low": ratio - 0.1, "ratio_high": ratio + 0.1,
    }  # fmt: skip


def report(batches=(1, 8, 64), counts=(5,), alternatives=("packed", "loop", "strong loop, 1 thread"), **more):
    rows = [row(b, n, name, 1 + 2 * i) for n in counts for b in batches for i, name in enumerate(alternatives)]
    environment = {"provider": "cpu", "processor": "A & B", "threads": 2}
    return {"results": rows, "environment": environment, "artifact": "folder/ensemble.onnx", **more}


def drawn(tmp_path, value, suffix=".svg"):
    path = tmp_path / f"bench{suffix}"
    draw(value, path)
    return path


def panels(path):
    """The axes that are shown."""
    return [g for g in ElementTree.parse(path).iter(f"{SVG}g") if g.get("id", "").startswith("axes_")]


@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_the_same_numbers_give_the_same_bytes(tmp_path, suffix):
    path = drawn(tmp_path, report(), suffix)
    first = path.read_bytes()
    drawn(tmp_path, report(), suffix)
    assert path.read_bytes() == first
    drawn(tmp_path, report(batches=(1, 8)), suffix)
    assert path.read_bytes() != first


def test_a_png_is_one(tmp_path):
    assert drawn(tmp_path, report(), ".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("batches", "counts", "expected"),
    [((1, 8, 64), (5,), 1), ((1, 8), (2, 5, 10), 3 + 2), ((None,), (5,), 1), ((1,), (10,), 1)],
    ids=["over B", "over B and N", "no batch", "one point"],
)
def test_one_panel_for_each_n_and_one_for_each_batch_where_n_varies(tmp_path, batches, counts, expected):
    assert len(panels(drawn(tmp_path, report(batches, counts)))) == expected


def test_other_settings_of_matplotlib_change_nothing(tmp_path):
    import matplotlib

    first = drawn(tmp_path, report()).read_bytes()
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        assert drawn(tmp_path, report()).read_bytes() == first


def test_many_alternatives_and_large_ratios_can_be_drawn(tmp_path):
    assert drawn(tmp_path, report(alternatives=["packed", *(f"$other {i}^_" for i in range(20))])).stat().st_size > 0


def test_the_page_holds_the_drawing_the_table_and_the_environment(tmp_path):
    text = drawn(tmp_path, report(), ".html").read_text()
    assert "<h1>Bench of ensemble.onnx</h1>" in text
    assert text.count("<svg") == 1
    assert (
        '<tr><td class="number">8</td><td class="number">5</td><td>loop</td><td class="number">3.00</td>'
        '<td class="number">2.90</td><td class="number">3.10</td><td class="number">0.3702</td></tr>'
    ) in text
    assert "<td>processor</td><td>A &amp; B</td>" in text


def test_the_page_needs_nothing_else(tmp_path):
    text = drawn(tmp_path, report(), ".html").read_text()
    for outside in ("<script", "<link", "<img", "src=", 'href="http', "url(http", "@import"):
        assert outside not in text


def test_names_cannot_write_html(tmp_path):
    value = report(alternatives=("packed", "<script>alert(1)</script>"), artifact="<b>&.onnx")
    value["environment"]["<i>"] = "</table>"
    text = drawn(tmp_path, value, ".html").read_text()
    assert "<script" not in text
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in text
    assert "<h1>Bench of &lt;b&gt;&amp;.onnx</h1>" in text
    assert "<td>&lt;i&gt;</td><td>&lt;/table&gt;</td>" in text


@pytest.mark.parametrize("name", ["bench.pdf", "bench", "bench.SVG"])
def test_another_suffix_is_refused(tmp_path, name):
    for refused in (lambda: draw(report(), tmp_path / name), lambda: check_suffix(tmp_path / name)):
        with pytest.raises(UsageError, match=r"bench.*: expected a file that ends in \.png, \.svg, \.html"):
            refused()


def test_a_report_without_rows_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"cannot draw '.*b\.svg': the report has no results"):
        draw({"results": [], "environment": {}}, tmp_path / "b.svg")


def test_matplotlib_missing_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OutputError, match="matplotlib is not installed") as caught:
        draw(report(), tmp_path / "bench.svg")
    assert (caught.value.hint, caught.value.exit_code) == ('Run: pip install "ensexport[plot]"', 7)
    assert not (tmp_path / "bench.svg").exists()
