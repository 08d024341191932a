import collections
import io
import os
import pickle
import random

import pytest

from ensexport.errors import CheckpointError, UnsafeCheckpointError
from ensexport.members.refusals import globals_in_pickle, refusal


class Payload:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_all_globals_are_listed_once_at_each_protocol(protocol):
    data = pickle.dumps([Payload(os.system, "x"), Payload(eval, "1"), Payload(os.system, "y")], protocol=protocol)
    assert globals_in_pickle(io.BytesIO(data)) == [f"{os.system.__module__}.system", "builtins.eval"]


def test_globals_of_several_pickles_in_a_row_are_listed_without_those_that_may_be_named():
    data = b"".join(pickle.dumps(item, protocol=2) for item in (1, collections.OrderedDict, random.Random))
    assert globals_in_pickle(io.BytesIO(data)) == ["random.Random"]


def test_a_hidden_name_is_shown_as_unknown():
    data = b"\x80\x04" + b"K\x01K\x02\x93."  # two numbers, then STACK_GLOBAL
    assert globals_in_pickle(io.BytesIO(data)) == ["?.?"]


@pytest.mark.parametrize("data", [b"", b"hello", bytes(range(256)), b"c"], ids=["empty", "text", "bytes", "cut"])
def test_bytes_that_are_no_pickle_have_no_globals(data):
    assert globals_in_pickle(io.BytesIO(data)) == []


TORCH_ADVICE = "Re-running `torch.load` with `weights_only` set to `False` will likely succeed"


def test_the_name_in_torchs_message_is_used_and_its_advice_is_not():
    text = f"Weights only load failed. {TORCH_ADVICE}\n GLOBAL models.Net was not an allowed"
    text += "\nUnsupported global: GLOBAL models.Net was not an allowed global by default."
    error = refusal(pickle.UnpicklingError(text), "m.pt", io.BytesIO())
    assert isinstance(error, UnsafeCheckpointError)
    assert "refused 'm.pt': it asks to run models.Net;" in str(error)
    assert error.details["blocked"] == ["models.Net"]
    assert "weights_only" not in str(error)


def test_a_blocked_module_is_named_with_everything_else_the_file_asks_for():
    text = f"{TORCH_ADVICE}\nTrying to load unsupported GLOBAL posix.system whose module posix is blocked."
    data = pickle.dumps([Payload(eval, "1"), collections.OrderedDict()], protocol=2)
    error = refusal(pickle.UnpicklingError(text), "m.pt", io.BytesIO(data))
    assert error.details["blocked"] == ["posix.system", "builtins.eval"]


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (RuntimeError("unexpected EOF.\nmore"), r"\(RuntimeError: unexpected EOF\.\)"),
        (EOFError(), r"\(EOFError\)"),
        (
            pickle.UnpicklingError(f"{TORCH_ADVICE}\nUnsupported operand 149"),
            r"\(UnpicklingError: Unsupported op",
        ),
        (RuntimeError(TORCH_ADVICE), r"\(RuntimeError\)"),
    ],
    ids=["first line", "no text", "operand", "advice alone"],
)
def test_a_file_that_asks_for_nothing_is_damaged_not_unsafe(raised, reason):
    error = refusal(raised, "m.pt", io.BytesIO(pickle.dumps([1, 2], protocol=4)))
    assert type(error) is CheckpointError
    with pytest.raises(CheckpointError, match=f"cannot read 'm.pt': .*{reason}"):
        raise error
    assert "weights_only" not in str(error)
