"""Why `torch.load(..., weights_only=True)` refused a file, in words of our own.

torch's message tells the reader to switch the protection off; ours names what the file asked to run and how
to make a safe file of it. The pickle is only disassembled here, never run, and only after torch refused it.
"""

from __future__ import annotations

import pickletools
import re
from typing import BinaryIO

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.wording import join_some, quote_path

_BLOCKED = re.compile(r"(?:Unsupported global: GLOBAL (\S+) was not|unsupported GLOBAL (\S+) whose module)")
_HARMLESS = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.(\w*Storage|Size|device|dtype|Tensor)"
    r"|argparse\.Namespace|torch\.storage\.\w*Storage|torch\.nn\.parameter\.Parameter|torch\.serialization\._get_layout"
)
_MAX_PICKLES = 8


def refusal(error: Exception, path: str, pickled: BinaryIO) -> CheckpointError | UnsafeCheckpointError:
    """Return the error to raise for what `torch.load` said.

    Args:
        error: What `torch.load` raised.
        path: For messages.
        pickled: The file's pickle, to name all it asks for; torch names only the first.
    """
    match = _BLOCKED.search(str(error))
    names = [name for name in globals_in_pickle(pickled) if not _HARMLESS.fullmatch(name)]
    if match:
        first = str(match[1] or match[2])
        if not any(name == first or name.endswith(f".{first}") for name in names):
            names.insert(0, first)
    if names and (match or _is_pickle_error(error)):
        return UnsafeCheckpointError(
            f"refused {quote_path(path)}: it asks to run {join_some(names)}; a checkpoint may hold "
            "only tensors and plain values.",
            hint="Ask its author for the weights alone: torch.save(model.state_dict(), ...).",
            blocked=names,
        )
    return CheckpointError(
        f"cannot read {quote_path(path)}: it is truncated, damaged, or was not written by torch.save "
        f"({_short_text(error)}).",
        hint="Copy it again, or save it again with torch.save(model.state_dict(), ...).",
    )


def globals_in_pickle(file: BinaryIO) -> list[str]:
    """Return the `module.name` of everything the pickles in a file ask to import, in order, each once.

    A reading aid, not a guard: what torch's loader lets through is decided by its allow-list alone.

    Args:
        file: One pickle or, as `torch.save` once wrote, several in a row.
    """
    names: dict[str, None] = {}
    for _ in range(_MAX_PICKLES):
        try:
            _collect_globals(file, names)
        except Exception:  # noqa: BLE001 - pickletools raises any error on bytes that are no pickle; the names so far stand
            break
    return list(names)


def _collect_globals(file: BinaryIO, names: dict[str, None]) -> None:
    pushed: list[str | None] = []  # what the last opcodes put on the stack, where it is a text
    memo: dict[object, str | None] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo[argument] = pushed[-1] if pushed else None
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = pushed[-1] if pushed else None
        elif opcode.name in {"GET", "BINGET", "LONG_BINGET"}:
            pushed.append(memo.get(argument))
        elif opcode.name in {"GLOBAL", "INST"}:
            names[_dotted(*str(argument).split(" ", 1))] = None
            pushed.append(None)
        elif opcode.name == "STACK_GLOBAL":
            module, name = ([None, None, *pushed])[-2:]
            names[_dotted(module or "?", name or "?")] = None
            pushed.append(None)
        elif opcode.stack_after:
            pushed.append(argument if isinstance(argument, str) else None)


def _dotted(module: str, name: str) -> str:
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _is_pickle_error(error: Exception) -> bool:
    """True if torch's unpickler stopped at something it does not know, rather than at missing bytes."""
    return type(error).__name__ == "UnpicklingError"


def _short_text(error: Exception) -> str:
    """The error's type and, unless it advises against safety, its first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kind = type(error).__name__
    if "weights_only" in str(error):
        found = next((line for line in lines if line.startswith(("Unsupported operand", "Trying to"))), "")
        return f"{kind}: {found}" if found and "weights_only" not in found else kind
    return f"{kind}: {lines[0][:200]}" if lines else kind
