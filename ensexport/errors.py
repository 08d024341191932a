"""The error tree: every failure a user can meet, with its exit code and its stable `E_...` code.

The command line catches `EnsexportError` once, in its root group, and turns it into a message or a JSON
object; a library user catches the same classes. Anything else that escapes is a bug of ours.
"""

from __future__ import annotations

from typing import Any, ClassVar


class EnsexportError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: What failed, on which object: expected X, got Y (where).
        hint: What to do about it, one sentence; empty when the message says it all.
        details: Facts a script may want as data (names, paths, values); must be JSON-serialisable.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "E_INTERNAL"

    def __init__(self, message: str, *, hint: str = "", **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def to_dict(self) -> dict[str, Any]:
        """Return the `error` object of the JSON contract."""
        own = {"code": self.code, "message": self.message, "hint": self.hint}
        return own | self.details | own  # the three keys of the contract come first and are never overwritten


# -- exit 2: how the tool was called ---------------------------------------------------------------


class UsageError(EnsexportError):
    """An option, argument or configuration value is malformed or missing."""

    exit_code = 2
    code = "E_USAGE"


class ConfigError(UsageError):
    """`ensexport.toml` or `[tool.ensexport]` cannot be read or holds an unknown name."""

    code = "E_CONFIG"


class InputSpecError(UsageError):
    """An input specification is not of the form `NAME:DTYPE[DIM,...]`."""

    code = "E_INPUT_SPEC"


# -- exit 3: an input file was refused -------------------------------------------------------------


class InputRefusedError(EnsexportError):
    """An input file is missing, corrupt or unsafe."""

    exit_code = 3
    code = "E_INPUT_REFUSED"


class NoCheckpointError(InputRefusedError):
    """A folder or glob holds no checkpoint."""

    code = "E_NO_CHECKPOINT"


class CheckpointError(InputRefusedError):
    """A checkpoint file cannot be read: truncated, damaged, or not a checkpoint at all."""

    code = "E_CHECKPOINT"


class NoWeightsError(CheckpointError):
    """A checkpoint file is sound but holds no weights: an optimizer's state."""

    code = "E_NO_WEIGHTS"


class IncompleteCheckpointError(CheckpointError):
    """The files hold only part of a network: an adapter, one rank's partition, or a shard is missing."""

    code = "E_INCOMPLETE"


class UnsafeCheckpointError(InputRefusedError):
    """A checkpoint file asks for code to be run."""

    code = "E_UNSAFE_CHECKPOINT"


class NonFiniteWeightsError(InputRefusedError):
    """A checkpoint holds NaN or Inf."""

    code = "E_NONFINITE"


class ArtifactError(InputRefusedError):
    """An exported file cannot be read back, or lacks what the command needs."""

    code = "E_ARTIFACT"


class DataError(InputRefusedError):
    """A file of inputs and labels cannot be read, or does not fit the artifact."""

    code = "E_DATA"


class MemoryLimitError(InputRefusedError):
    """The work needs more memory than this machine, its control group or `ulimit` leaves."""

    code = "E_MEMORY"


# -- exit 4: members or model do not fit -----------------------------------------------------------


class MemberError(EnsexportError):
    """Members do not fit together, or the model uses what cannot be packed."""

    exit_code = 4
    code = "E_MEMBERS"


class StackError(MemberError):
    """Keys, shapes, dtypes or plain attributes differ between members."""

    code = "E_STACK"


class WeightRangeError(MemberError):
    """A weight is beyond the range of the dtype that was asked for."""

    code = "E_WEIGHT_RANGE"


class LostTensorsError(MemberError):
    """Tensors of a member are not in a packed file bit for bit."""

    code = "E_LOST_TENSORS"


class ArchitectureError(MemberError):
    """The architecture cannot be imported, raises, or is no `torch.nn.Module`."""

    code = "E_MODEL"


class ModelInputError(MemberError):
    """The model does not accept the inputs that were specified."""

    code = "E_MODEL_INPUT"


class ModelOutputError(MemberError):
    """The model returns something that is not made of tensors."""

    code = "E_MODEL_OUTPUT"


class RandomModelError(MemberError):
    """The model draws random numbers in eval mode, so no two runs agree."""

    code = "E_RANDOM"


class ControlFlowError(MemberError):
    """The model branches on the values of its data."""

    code = "E_CONTROL_FLOW"


class MutationError(MemberError):
    """The model changes its own state or its inputs when run."""

    code = "E_MUTATION"


class UnsupportedModelError(MemberError):
    """`torch.export` cannot capture the model."""

    code = "E_UNSUPPORTED_MODEL"


# -- exit 5: the proof failed ----------------------------------------------------------------------


class MismatchError(EnsexportError):
    """An artifact differs from the loop over the members."""

    exit_code = 5
    code = "E_MISMATCH"


class SpeedupError(EnsexportError):
    """`bench --min-speedup` was not reached."""

    exit_code = 5
    code = "E_SPEEDUP"


# -- exit 6: export --------------------------------------------------------------------------------


class ExportError(EnsexportError):
    """Writing a target format failed."""

    exit_code = 6
    code = "E_EXPORT"


class FrozenDimError(ExportError):
    """A dimension that was promised to be dynamic is fixed in the graph."""

    code = "E_FROZEN_DIM"


class OpsetError(ExportError):
    """The opset asked for cannot be written or run."""

    code = "E_OPSET"


# -- exit 7: output and environment ----------------------------------------------------------------


class OutputError(EnsexportError):
    """The output could not be written: disk, permission, or an existing target without `--force`."""

    exit_code = 7
    code = "E_OUTPUT"


class TargetExistsError(OutputError):
    """The target exists and `--force` was not given."""

    code = "E_TARGET_EXISTS"


class ProviderError(EnsexportError):
    """An execution provider was asked for and is not there, or fell back to another one."""

    exit_code = 7
    code = "E_PROVIDER"


class OutOfMemoryError(EnsexportError):
    """The system gave no more memory while the work was under way."""

    exit_code = 7
    code = "E_OUT_OF_MEMORY"
