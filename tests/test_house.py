"""Rules about the code as a whole, kept by reading it."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ensexport

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ensexport"
FILES = sorted(PACKAGE.rglob("*.py"))

# Each part imports only what stands left of it (or its own). Parts in one group may not import each other.
ORDER = (
    ("errors", "version"),
    ("control_groups",),
    ("resources",),
    ("memory_errors", "spec", "emission", "weighting", "dtypes"),
    ("staging", "compare", "choice", "clock", "output_files"),
    ("combined_reference",),
    ("estimates", "members"),
    ("runtime",),
    ("timing", "input_data"),
    ("stacking",),
    ("batching",),
    ("combining",),
    ("heads",),
    ("targets",),
    ("recipe", "probes"),
    ("references", "combined_checks"),
    ("validation",),
    ("artifacts", "source"),
    ("strategies", "proving"),
    ("package",),
    ("pipeline",),
    ("packing", "swapping", "extracting"),
    ("bench",),
    ("cli",),
    ("__main__",),
)
PLACE = {part: place for place, group in enumerate(ORDER) for part in group}


def name_of(path):
    """`ensexport/members/wording.py` -> `members.wording`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path):
    """Yield `(line, part of this package)` for every import in a file, also those inside functions and checks."""
    inside = ["ensexport", *name_of(path).split(".")]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + (path.name == "__init__.py")]
            names = [".".join(filter(None, [*base, node.module, alias.name])) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "ensexport" and len(name.split(".")) > 1:
                yield node.lineno, name.split(".")[1]


def parts():
    return sorted({name_of(path).split(".")[0] for path in FILES} - {""})


def test_every_part_has_its_place_in_the_order():
    assert set(parts()) <= PLACE.keys(), "add the new part to ORDER, where what it imports stands left of it"


@pytest.mark.parametrize("part", parts())
def test_each_part_imports_only_what_stands_left_of_it(part):
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {other}"
        for path in FILES
        if name_of(path).split(".")[0] == part
        for line, other in imports_of(path)
        if other != part and PLACE.get(other, len(ORDER)) >= PLACE[part]  # the package's own public names neither
    ]
    assert not wrong


def test_the_reading_of_imports_sees_all_of_them(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "members").mkdir()
    path = tmp_path / "members" / "loading.py"
    path.write_text(
        "import os, ensexport.cli.root\n"
        "from ensexport import stack\n"
        "from ensexport.bench import run\n"
        "if TYPE_CHECKING:\n"
        "    from ..spec import Check\n"
        "def late():\n"
        "    from .wording import show_path\n"
        "    from .. import pipeline\n"
    )
    assert list(imports_of(path)) == [
        (1, "cli"), (2, "stack"), (3, "bench"), (5, "spec"), (7, "members"), (8, "pipeline"),
    ]  # fmt: skip


def test_the_public_names_are_real():
    assert sorted(ensexport.__all__) == ensexport.__all__
    for name in ensexport.__all__:
        assert getattr(ensexport, name) is not None
    assert dir(ensexport) == ensexport.__all__
    assert set(ensexport._HOMES) < set(ensexport.__all__)
    with pytest.raises(AttributeError, match="module 'ensexport' has no attribute 'nothing'"):
        _ = ensexport.nothing


@pytest.mark.parametrize("part", ["members", "runtime", "stacking"])
def test_the_public_names_of_a_part_are_real(part):
    module = __import__(f"ensexport.{part}", fromlist=["__all__"])
    assert sorted(module.__all__) == module.__all__
    for name in module.__all__:
        assert getattr(module, name) is not None


LIGHT = (
    "ensexport",
    "ensexport.errors",
    "ensexport.spec",
    "ensexport.emission",
    "ensexport.weighting",
    "ensexport.staging",
    "ensexport.resources",
    "ensexport.members.config",
)
HEAVY = ("torch", "onnx", "onnxruntime", "onnxscript", "numpy", "safetensors")


def test_what_the_command_line_needs_first_loads_nothing_heavy():
    code = f"import sys, json, {', '.join(LIGHT)}; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not set(HEAVY) & set(json.loads(done.stdout))


@pytest.mark.parametrize("path", [path for path in FILES if path.parent.name != "cli"], ids=name_of)
def test_nothing_is_printed_outside_the_command_line(path):
    calls = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not calls


def test_every_module_says_what_it_is_for():
    silent = [str(path.relative_to(ROOT)) for path in FILES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


def tracked_files():
    done = subprocess.run(["git", "ls-files", "-z"], check=True, cwd=ROOT, capture_output=True, text=True)
    return [ROOT / name for name in done.stdout.split("\0") if name]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout knows which files belong to it")
def test_no_file_holds_a_path_of_one_machine():
    path_of_one = re.compile(rf"{re.escape(str(ROOT))}\b|{re.escape(str(Path.home()))}/|/home/\w+/|/Users/\w+/")
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
        if path != Path(__file__):
            found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in path_of_one.finditer(text)]
    assert not found
