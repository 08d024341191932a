import json
import pickle

import pytest

from ensexport import errors
from ensexport.errors import EnsexportError

TREE = {
    "UsageError": (2, "E_USAGE"),
    "ConfigError": (2, "E_CONFIG"),
    "InputSpecError": (2, "E_INPUT_SPEC"),
    "InputRefusedError": (3, "E_INPUT_REFUSED"),
    "NoCheckpointError": (3, "E_NO_CHECKPOINT"),
    "CheckpointError": (3, "E_CHECKPOINT"),
    "UnsafeCheckpointError": (3, "E_UNSAFE_CHECKPOINT"),
    "NonFiniteWeightsError": (3, "E_NONFINITE"),
    "ArtifactError": (3, "E_ARTIFACT"),
    "MemberError": (4, "E_MEMBERS"),
    "StackError": (4, "E_STACK"),
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
