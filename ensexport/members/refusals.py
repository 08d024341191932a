"""Why a file was refused, in words of our own.

torch's message tells the reader to switch the protection off; ours names what the file asked to run and the ways
to go on. The pickle is only disassembled here, never run, and only after it was refused.
"""

from __future__ import annotations

import itertools
import pickletools
import re
from typing import BinaryIO

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.calls import is_known
from ensexport.members.wording import join_some, quote_path

_BLOCKED = re.compile(r"(?:Unsupported global: GLOBAL (\S+) was not|unsupported GLOBAL (\S+) whose module)")
_NAME = re.compile(r"(?:[^\W\d][\w-]*\.)+[^\W\d]\w*|\?\.\?|[\w.]+\.\?|\?\.[\w.]+")
_MAX_PICKLES = 8
_MAX_STEPS = 500_000


def refusal(error: Exception, path: str, pickled: BinaryIO) -> CheckpointError | UnsafeCheckpointError:
    """Return the error to raise for what `torch.load` said.

    Args:
        error: What `torch.load` raised.
        path: For messages.
        pickled: The file's pickle, to name all it asks for; torch names only the first.
    """
    match = _BLOCKED.search(str(error))
    names = globals_in_pickle(pickled)
    if match:
        first = str(match[1] or match[2])
        if not any(name == first or name.endswith(f".{first}") for name in names):
            names.insert(0, first)
    if names and (match or _is_pickle_error(error)):
        return refused(names, path)
    return damaged(path, _short_text(error))


def refused(names: list[str], path: str) -> UnsafeCheckpointError:
    """Return the error for a file that asks for code.

    Args:
        names: What it asks for, `module.name` each.
        path: For messages.
    """
    return UnsafeCheckpointError(
        f"refused {quote_path(path)}: it asks to run {join_some([_printable(name) for name in names])}; a checkpoint "
        "may hold only tensors and plain values.",
        hint="Ask its author for the weights alone, torch.save(model.state_dict(), ...); "
        "or give --allow-pickle where you trust its author.",
        blocked=[_printable(name) for name in names],
    )


def unread(path: str, reason: str) -> UnsafeCheckpointError:
    """Return the error for a pickle that names nothing dangerous and that the safe loader still cannot read.

    Args:
        path: For messages.
        reason: Why, as a sentence without its full stop.
    """
    return UnsafeCheckpointError(
        f"refused {quote_path(path)}: {reason}.",
        hint="Save it again with torch.save and its default protocol; "
        "or give --allow-pickle where you trust its author.",
    )


def damaged(path: str, reason: str) -> CheckpointError:
    """Return the error for a file that did not arrive whole or was never a checkpoint.

    Args:
        path: For messages.
        reason: What was found, in few words.
    """
    return CheckpointError(
        f"cannot read {quote_path(path)}: it is truncated, damaged, or was not written by torch.save ({reason}).",
        hint="Copy it again, or save it again with torch.save(model.state_dict(), ...).",
    )


def globals_in_pickle(file: BinaryIO) -> list[str]:
    """Return the `module.name` of what the pickles in a file ask to import and may not, in order, each once.

    A reading aid, not a guard: what may be called is decided by `calls.py` and by torch's own list.

    Args:
        file: One pickle or, as `torch.save` once wrote, several in a row.
    """
    names: dict[str, None] = {}
    left = _MAX_STEPS
    for _ in range(_MAX_PICKLES):
        try:
            left = _collect_globals(file, names, left)
        except Exception:  # noqa: BLE001 - pickletools raises any error on bytes that are no pickle; the names so far stand
            break
    return [name for name in names if not is_known(name) and _NAME.fullmatch(name)]


def looks_like_pickle(file: BinaryIO) -> bool:
    """True if the file begins with one whole pickle.

    Args:
        file: Stands at its first byte.
    """
    try:
        return any(opcode.name == "STOP" for opcode, _, _ in itertools.islice(pickletools.genops(file), _MAX_STEPS))
    except Exception:  # noqa: BLE001 - as above
        return False


def _collect_globals(file: BinaryIO, names: dict[str, None], left: int) -> int:
    """Add the names in the next pickle; return how many more instructions may be looked at."""
    pushed: list[str | None] = []  # what the last opcodes put on the stack, where it is a text
    memo: dict[object, str | None] = {}
    for opcode, argument, _ in itertools.islice(pickletools.genops(file), left):
        left -= 1
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
    return left


def _dotted(module: str, name: str) -> str:
    return f"{'builtins' if module == '__builtin__' else module}.{name}"


def _printable(name: str) -> str:
    return name[:200] if name.isprintable() else repr(name[:200])


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
