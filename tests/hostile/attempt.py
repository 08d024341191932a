"""Load one hostile file as a user would, and note everything that may not happen."""

import gc
import os
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from ensexport.errors import EnsexportError
from ensexport.members import load_members
from tests.hostile.cases import EXITS

MAX_SECONDS = 2.0
_WAITING = 10  # times as long as it computes: what waits that long hangs
MAX_GROWTH_BYTES = 64 * 2**20
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Result:
    """What loading one file did.

    Attributes:
        code: The error's code; None if it loaded; the traceback's last line if it was no error of ours.
        exit_code: What the command line would return.
        message: What the user would read.
        seconds: Seconds of computing, or a tenth of the time it took where that is more: other work must not count.
        growth_bytes: How much more memory it held at its worst; None where the system does not say.
        left: Files that were not there before.
        is_canary_there: A payload ran.
        size_bytes: Of the file.
    """

    code: str | None
    exit_code: int
    message: str
    seconds: float
    growth_bytes: int | None
    left: list[str]
    is_canary_there: bool
    size_bytes: int

    def faults(self, case):
        """Everything that is wrong with it, in words."""
        wrong = []
        right = {"E_CHECKPOINT", "E_USAGE", "E_NO_CHECKPOINT", "E_INPUT_REFUSED"} if case.code == "any" else {case.code}
        if self.code not in right or self.exit_code != EXITS.get(self.code, 1):
            wrong.append(f"expected {case.code}, got {self.code} with exit code {self.exit_code}: {self.message}")
        if "weights_only" in self.message:
            wrong.append(f"advises against safety: {self.message}")
        if self.is_canary_there:
            wrong.append("the payload ran")
        if self.left:
            wrong.append(f"left behind: {', '.join(self.left)}")
        if self.seconds > MAX_SECONDS:
            wrong.append(f"took {self.seconds:.1f} s")
        if self.growth_bytes is not None and self.growth_bytes > MAX_GROWTH_BYTES + self.size_bytes:
            wrong.append(f"took {self.growth_bytes / 2**20:.0f} MiB of memory")
        return wrong


def attempt(case, folder):
    """Write the file of a case into an empty folder, load it, and say what happened."""
    path = case.make(folder)
    size_bytes = path.stat().st_size if path.is_file() else 0
    before = _everything(folder)
    gc.collect()
    gc.freeze()  # what earlier tests left is not looked through again, as in a process of its own
    start_bytes, started, began = _peak_bytes(reset=True), time.process_time(), time.perf_counter()
    code, exit_code, message = None, 0, ""
    try:
        members = load_members([path])
        for tensor in members[0].state.values():
            tensor.sum() if tensor.dtype.itemsize > 2 else tensor.clone()  # touch every byte
    except EnsexportError as error:
        code, exit_code, message = error.code, error.exit_code, str(error)
    except BaseException as error:  # noqa: BLE001 - that there is none is what is tested
        code, exit_code, message = repr(error), 1, "".join(traceback.format_exception(error)[-3:])
    seconds = max(time.process_time() - started, (time.perf_counter() - began) / _WAITING)
    end_bytes = _peak_bytes(reset=False)
    gc.unfreeze()
    growth = None if start_bytes is None or end_bytes is None else end_bytes - start_bytes
    left = sorted(_everything(folder) - before)
    return Result(code, exit_code, message, seconds, growth, left, (folder / "canary").exists(), size_bytes)


def _everything(folder):
    places = {Path.cwd(), Path(tempfile.gettempdir()), folder}
    return {str(path) for place in places for path in place.iterdir()}


def _peak_bytes(*, reset):
    """The most memory held since the last reset. Source: proc(5), clear_refs 5 and VmHWM."""
    if not os.access(_RESET, os.W_OK):
        return None
    if reset:
        _RESET.write_text("5")
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
