"""What integer inputs are tried with: the whole of the tables they look up, read off the member graph."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ensexport
from ensexport.batching.examples import find_example, integer_inputs, range_from_json
from ensexport.batching.integers import accepted_ranges
from ensexport.batching.member_graph import capture_member
from ensexport.errors import MismatchError
from ensexport.spec import parse_inputs


class Looks(nn.Module):
    def __init__(self, function, **tables):
        super().__init__()
        self.function = function
        for name, table in tables.items():
            setattr(self, name, table) if isinstance(table, nn.Module) else self.register_buffer(name, table)

    def forward(self, *inputs):
        return self.function(self, *inputs)


def table(rows):
    return nn.Embedding(rows, 4)


IDS = "ids:int64[batch,3]"
CASES = {
    "embedding": (Looks(lambda m, ids: m.t(ids), t=table(50)), [IDS], {"ids": (0, 49)}),
    "two tables, the smaller counts": (
        Looks(lambda m, ids: m.t(ids) + m.u(ids), t=table(50), u=table(20)), [IDS], {"ids": (0, 19)}),
    "int32 of another input": (
        Looks(lambda m, ids, kind: m.t(ids) + m.u(kind)[:, None], t=table(50), u=table(2)),
        ["ids:int32[batch,3]", "kind:int64[batch]"], {"ids": (0, 49), "kind": (0, 1)}),
    "moved about": (
        Looks(lambda m, ids: m.t(ids.t().reshape(-1).unsqueeze(0).flip(1)), t=table(50)), [IDS], {"ids": (0, 49)}),
    "one table a column": (
        Looks(lambda m, ids: m.t(ids[:, 0]) + m.u(ids[:, 1]), t=table(50), u=table(9)), [IDS],
        {"ids": (0, 49)}),
    "offsets of columns": (
        Looks(lambda m, ids: m.t(ids + m.o), t=table(50), o=torch.tensor([0, 7, 40])), [IDS], {"ids": (0, 49)}),
    "numbered from one": (Looks(lambda m, ids: m.t(ids - 1), t=table(50)), [IDS], {"ids": (1, 50)}),
    "numbered from minus one": (Looks(lambda m, ids: m.t(ids + 1), t=table(50)), [IDS], {"ids": (0, 48)}),
    "shifted right, as decoders do": (
        Looks(lambda m, ids: m.t(torch.cat([ids[:, :1], ids[:, :-1]], 1)), t=table(50)), [IDS], {"ids": (0, 49)}),
    "gather": (Looks(lambda m, x, i: x.gather(1, i), w=torch.ones(1)),
               ["x:float32[batch,8]", "i:int64[batch,2]"], {"i": (0, 7)}),
    "index": (Looks(lambda m, i: m.w[i], w=torch.randn(30, 4)), ["i:int64[batch]"], {"i": (0, 29)}),
    "index_select": (Looks(lambda m, i: m.w.index_select(0, i), w=torch.randn(30, 4)), ["i:int64[batch]"],
                     {"i": (0, 29)}),
    "one_hot": (Looks(lambda m, i: F.one_hot(i, 11).float() @ m.w, w=torch.randn(11, 4)), ["i:int64[batch]"],
                {"i": (0, 10)}),
    "bag": (Looks(lambda m, ids: m.t(ids), t=nn.EmbeddingBag(60, 4)), [IDS], {"ids": (0, 59)}),
    "bag with offsets": (Looks(lambda m, ids, at: m.t(ids, at), t=nn.EmbeddingBag(60, 4)),
                         ["ids:int64[n]", "at:int64[batch]"], {"ids": (0, 59), "at": (0, None)}),
    "categories in a float input": (
        Looks(lambda m, x: m.t(x[:, 2].long()) * x[:, :1], t=table(50)), ["x:float32[batch,3]"], {"x": (0, 49)}),
    "hashed, so any integer will do": (Looks(lambda m, ids: m.t(ids % 50), t=table(50)), [IDS], {"ids": (0, 1)}),
    "a mask, which looks nothing up": (
        Looks(lambda m, ids: ids.float() @ m.w, w=torch.randn(3, 4)), [IDS], {"ids": (0, 1)}),
    "cannot be followed": (Looks(lambda m, ids: m.t(ids * 2), t=table(50)), [IDS], {"ids": (0, 1)}),
}  # fmt: skip


@pytest.mark.parametrize(("module", "inputs", "expected"), CASES.values(), ids=CASES)
def test_integers_are_tried_up_to_the_end_of_what_they_look_up(module, inputs, expected):
    specs = parse_inputs(inputs)
    module.eval()
    example = find_example(module, specs)
    ranges, warnings = accepted_ranges(module, capture_member(module, specs, example), example)
    assert integer_inputs(specs, ranges) == expected
    assert warnings == ()
    assert {name: range_from_json(json.loads(json.dumps(v.to_json()))).bounds for name, v in ranges.items()} == {
        name: values.bounds for name, values in ranges.items()
    }


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(200, 3)

    def forward(self, ids):
        return self.table(ids).sum(1)


def test_a_wrong_row_far_down_a_table_is_found(tmp_path):
    for index in range(2):
        torch.manual_seed(index)
        torch.save(Rows().state_dict(), tmp_path / f"m{index}.pt")
    members = ensexport.load_members(tmp_path, model=Rows)
    report = ensexport.export(members, tmp_path / "e.ts", inputs=["ids:int64[batch,t]"], batches=(2,))
    assert report.validation.to_dict()["integer_inputs"] == {"ids": [0, 199]}
    assert ensexport.validate(tmp_path / "e.ts", members).integer_inputs == {"ids": (0, 199)}
    state = torch.load(tmp_path / "m1.pt", weights_only=True)
    state["table.weight"][123] += 1
    torch.save(state, tmp_path / "m1.pt")
    with pytest.raises(MismatchError, match=r"differs from the baseline: max abs diff .* at member 1"):
        ensexport.validate(tmp_path / "e.ts", ensexport.load_members(tmp_path, model=Rows))


def test_a_model_that_refuses_its_own_tables_rows_is_tried_with_0_and_1(tmp_path):
    class Picky(Rows):
        def forward(self, ids):
            if not torch.compiler.is_exporting() and int(ids.max()) > 100:
                raise ValueError("reserved")
            return super().forward(ids)

    report = ensexport.export(
        ensexport.stack([Picky(), Picky()]), tmp_path / "e.ts", inputs=["ids:int64[batch,t]"], batches=(2,)
    )
    assert report.validation.integer_inputs == {"ids": (0, 1)}
    assert report.warnings == (
        "the proof uses 0 and 1 only for 'ids': the model refuses the whole range of its tables (ValueError: reserved)",
    )
