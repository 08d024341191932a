import ast
import functools
import json
import pickle
import re
from pathlib import Path

import pytest

from ensexport import errors
from ensexport.errors import EnsexportError

ROOT = Path(__file__).parent.parent

TREE = {
    "UsageError": (2, "E_USAGE"),
    "ConfigError": (2, "E_CONFIG"),
    "InputSpecError": (2, "E_INPUT_SPEC"),
    "InputRefusedError": (3, "E_INPUT_REFUSED"),
    "NoCheckpointError": (3, "E_NO_CHECKPOINT"),
    "CheckpointError": (3, "E_CHECKPOINT"),
    "NoWeightsError": (3, "E_NO_WEIGHTS"),
    "IncompleteCheckpointError": (3, "E_INCOMPLETE"),
    "UnsafeCheckpointError": (3, "E_UNSAFE_CHECKPOINT"),
    "NonFiniteWeightsError": (3, "E_NONFINITE"),
    "ArtifactError": (3, "E_ARTIFACT"),
    "DataError": (3, "E_DATA"),
    "MemoryLimitError": (3, "E_MEMORY"),
    "MemberError": (4, "E_MEMBERS"),
    "StackError": (4, "E_STACK"),
    "WeightRangeError": (4, "E_WEIGHT_RANGE"),
    "LostTensorsError": (4, "E_LOST_TENSORS"),
    "ArchitectureError": (4, "E_MODEL"),
    "ModelInputError": (4, "E_MODEL_INPUT"),
    "ModelOutputError": (4, "E_MODEL_OUTPUT"),
    "RandomModelError": (4, "E_RANDOM"),
    "ControlFlowError": (4, "E_CONTROL_FLOW"),
    "MutationError": (4, "E_MUTATION"),
    "UnsupportedModelError": (4, "E_UNSUPPORTED_MODEL"),
    "MismatchError": (5, "E_MISMATCH"),
    "SpeedupError": (5, "E_SPEEDUP"),
    "ExportError": (6, "E_EXPORT"),
    "FrozenDimError": (6, "E_FROZEN_DIM"),
    "OpsetError": (6, "E_OPSET"),
    "OutputError": (7, "E_OUTPUT"),
    "TargetExistsError": (7, "E_TARGET_EXISTS"),
    "ProviderError": (7, "E_PROVIDER"),
    "OutOfMemoryError": (7, "E_OUT_OF_MEMORY"),
}


def classes():
    return [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, EnsexportError)]


@pytest.mark.parametrize(("name", "exit_code", "code"), [(n, *v) for n, v in TREE.items()], ids=TREE)
def test_scripts_may_rely_on_exit_codes_and_codes(name, exit_code, code):
    kind = getattr(errors, name)
    assert (kind.exit_code, kind.code) == (exit_code, code)


def test_every_code_is_used_once_and_starts_with_e():
    codes = [kind.code for kind in classes()]
    assert len(set(codes)) == len(codes)
    assert all(code.startswith("E_") for code in codes)


def test_an_error_tells_its_message_and_its_hint():
    error = errors.StackError("a is 1 in member 0, 2 in member 1.", hint="Train again.", member_index=1)
    assert str(error) == "a is 1 in member 0, 2 in member 1. Train again."
    assert str(errors.StackError("no hint.")) == "no hint."
    assert json.loads(json.dumps(error.to_dict())) == {
        "code": "E_STACK",
        "message": "a is 1 in member 0, 2 in member 1.",
        "hint": "Train again.",
        "member_index": 1,
    }


def test_details_never_take_the_place_of_the_code():
    error = errors.OutputError("no.", code="mine", details={"a": 1})
    assert error.to_dict() == {"code": "E_OUTPUT", "message": "no.", "hint": "", "details": {"a": 1}}
    assert next(iter(error.to_dict())) == "code"


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.__name__)
def test_every_error_survives_a_process_boundary(kind):
    error = pickle.loads(pickle.dumps(kind("what.", hint="do.", index=3)))
    assert type(error) is kind
    assert error.to_dict() == kind("what.", hint="do.", index=3).to_dict()


# -- docs/errors.md ----------------------------------------------------------------------------------

FAILURES = ROOT / "ensexport" / "cli" / "failures.py"
PAGE = (ROOT / "docs" / "errors.md").read_text()
ROW = re.compile(r"^\| (\d+) \| \[`(E_\w+)`\]\(#(e_\w+)\) \| (?:`(\w+)`)? ?\| (.+) \|$", re.MULTILINE)
GROUPS = {"E_INPUT_REFUSED", "E_MEMBERS"}
SIGNALS = {"E_ENVIRONMENT": 7, "E_INTERRUPTED": 130, "E_TERMINATED": 143}


def sections():
    """Code -> `(the exit code it stands under, its text)`."""
    found, exit_codes = {}, []
    for block in re.split(r"^(?=##)", PAGE, flags=re.MULTILINE)[1:]:
        title, _, text = block.partition("\n")
        if title.startswith("### "):
            found[title.removeprefix("### ")] = (exit_codes, text)
        else:
            exit_codes = [int(number) for number in re.findall(r"\d+", title)]
    return found


def pattern_of(node):
    """A regular expression for the texts that an expression can become."""
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(map(pattern_of, parts))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return pattern_of(left) + pattern_of(right)
        case ast.IfExp(body=body, orelse=orelse):
            return f"(?:{pattern_of(body)}|{pattern_of(orelse)})"
    return ".*"


@functools.cache
def texts_in_the_code():
    """Code -> regular expressions for message and hint, of each place that makes such an error."""
    code_of = {kind.__name__: kind.code for kind in classes()}
    found = {}
    for path in sorted((ROOT / "ensexport").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            hints = [keyword.value for keyword in node.keywords if keyword.arg == "hint"]
            code, texts = code_of.get(node.func.id), [node.args[0], *hints]
            if node.func.id == "_details" and path == FAILURES:
                code, texts = node.args[0].value, node.args[1:]
            found.setdefault(code, []).append(" ?".join(map(pattern_of, texts)))
    return found


def test_the_page_names_every_code_with_its_exit_code_and_class():
    expected = {kind.code: (kind.exit_code, kind.__name__) for kind in classes()}
    expected |= {code: (exit_code, "") for code, exit_code in SIGNALS.items()}
    rows = ROW.findall(PAGE)
    assert {code: (int(exit_code), name) for exit_code, code, _, name, _ in rows} == expected
    assert len(rows) == len(expected)
    assert all(code.lower() == anchor for _, code, anchor, _, _ in rows)


def test_the_page_has_a_section_for_each_code_under_its_exit_code_and_names_no_other():
    table = {code: int(exit_code) for exit_code, code, *_ in ROW.findall(PAGE)}
    assert list(sections()) == list(table)
    for code, (exit_codes, _) in sections().items():
        assert table[code] in exit_codes
    assert set(re.findall(r"\bE_[A-Z_]*[A-Z]", PAGE)) == set(table)


def test_what_only_the_command_line_reports_is_on_the_page():
    assert set(re.findall(r'"(E_\w+)"', FAILURES.read_text())) == {"E_INTERNAL", "E_USAGE", *SIGNALS}


@pytest.mark.parametrize("code", sections())
def test_the_example_of_a_code_can_come_out_of_the_code(code):
    example = " ".join(re.findall(r"^ {4}(.+)$", sections()[code][1], re.MULTILINE))
    assert bool(example) == (code not in GROUPS)
    if example:
        start, _, text = example.partition(": ")
        assert start == f"error [{code}]"
        assert any(re.fullmatch(pattern, text) for pattern in texts_in_the_code()[code])
