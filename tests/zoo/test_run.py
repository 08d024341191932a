"""The harness itself: which rows are run, what is kept, what the page says. No network is packed here."""

import sys

import pytest

from ensexport.spec import parse_inputs
from tests.zoo import run
from tests.zoo.rows import ROWS

DONE = {"ok": True, "seconds": 3.2, "max_error": 2e-7, "fallbacks": ["einsum.default (vmap)"]}
DONE |= {"date": "2026-01-02", "versions": "torch 2.13.0"}
FAILED = {"ok": False, "error": "E_X: a | b", "torch": "", "date": "2026-01-01", "versions": "torch 2.13.0"}


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.key)
def test_rows_are_well_formed(row):
    assert row.library in run.LIBRARIES
    assert parse_inputs(row.inputs)[0].dims[0] == "batch"
    assert ("model_type" in row.args) is (row.library == "transformers")


def test_rows_are_chosen_by_any_of_their_names():
    assert [row.key for row in run.wanted("DenseNet, timm/resnet10t", {})] == [
        "timm/resnet10t",
        "torchvision/densenet121",
    ]
    assert len(run.wanted("", {})) == len(ROWS)
    assert {row.library for row in run.wanted("transformers", {})} == {"transformers"}
    with pytest.raises(SystemExit, match="no library, family or architecture: nothing"):
        run.wanted("nothing,timm", {})


def test_a_resumed_run_leaves_out_what_was_packed():
    done = {"transformers/BertModel": DONE, "transformers/GPT2LMHeadModel": FAILED}
    keys = [row.key for row in run.wanted("BertModel,GPT2LMHeadModel", done)]
    assert keys == ["transformers/GPT2LMHeadModel"]


def test_the_last_result_counts_and_a_broken_line_does_not(tmp_path):
    path = tmp_path / "zoo" / "results.jsonl"
    assert run.read_results(path) == {}
    run.add_result(path, "timm/a", FAILED)
    run.add_result(path, "timm/b", FAILED)
    run.add_result(path, "timm/a", DONE)
    path.write_text(path.read_text() + '{"key": "timm/b", "ok"')
    assert run.read_results(path) == {"timm/a": DONE, "timm/b": FAILED}


@pytest.mark.parametrize(
    ("code", "result"),
    [
        ("print('noise'); print('{\"ok\": true}')", {"ok": True}),
        ("raise ValueError('dead')", {"ok": False, "error": "exit 1: ValueError: dead"}),
        ("", {"ok": False, "error": "exit 0: no word"}),
        ("import time; time.sleep(60)", {"ok": False, "error": "not done after 1 s"}),
    ],
    ids=["done", "raises", "silent", "hangs"],
)
def test_a_process_always_gives_a_result(code, result):
    assert run._run([sys.executable, "-c", code], 30 if "sleep" not in code else 1) == result


def test_the_page_says_what_was_packed_and_why_not():
    results = {"torchvision/alexnet": DONE, "torchvision/vgg11": FAILED, "torchvision/gone": DONE}
    results["transformers/BertModel"] = FAILED | {"torch": "ValueError: no", "versions": "torch 2.12.0"}
    page = run.page(results)
    assert "| AlexNet | alexnet | yes | 3.2 | 2.0e-07 | einsum.default (vmap) |" in page
    assert "| VGG | vgg11 | no | | | E_X: a / b (ours: torch.export can) |" in page
    assert "(torch.export fails too: ValueError: no) |" in page
    assert "2026-01-01 to 2026-01-02, with torch 2.13.0. 2026-01-01, with torch 2.12.0." in page
    assert "1 of 2 packed; 21 more were not run." in page
    assert "gone" not in page
    assert max(map(len, page.splitlines())) < 200


def test_a_page_without_results_says_so():
    assert "Nothing was run yet." in run.page({})
