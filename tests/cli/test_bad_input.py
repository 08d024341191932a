"""Every bad input: the documented exit code, a message that says what and where, nothing left behind."""

import os
import pickle
import shutil

import pytest
import torch

from tests.cli.projects import MLP, X, change_state, run, snapshot

PACK = ("pack", "ckpts", "--model", "model.py:Net", "--input", X, "-o", "e.onnx", "-o", "e.ts")


def check_refused(folder, arguments, exit_code, *facts, code=None):
    """Run as text and as JSON: same exit code, the facts in the message, the folder as before."""
    before = snapshot(folder)
    as_text, as_json = run(*arguments), run(*arguments, "--json")
    assert snapshot(folder) == before
    assert (as_text.exit_code, as_text.out) == (exit_code, "")
    error = as_json.error
    assert as_json.exit_code == exit_code
    assert code is None or error["code"] == code
    for fact in facts:
        assert fact in as_text.err.replace("\n", " ")
        assert fact in f"{error['message']} {error['hint']}"
    assert "Traceback" not in as_text.err + as_json.err


# -- checkpoint files ------------------------------------------------------------------------------


def test_a_folder_without_checkpoints(project):
    shutil.rmtree(project / "ckpts")
    (project / "ckpts").mkdir()
    (project / "ckpts" / "notes.txt").write_text("nothing")
    check_refused(project, PACK, 3, "'ckpts'", "notes.txt", ".safetensors", code="E_NO_CHECKPOINT")


def test_a_missing_folder(project):
    check_refused(project, ("pack", "nowhere", *PACK[2:]), 2, "'nowhere'", code="E_USAGE")


@pytest.mark.parametrize("keep", [0, 0.5, -10], ids=["empty", "half", "last-bytes"])
def test_a_truncated_file(project, keep):
    path = project / "ckpts" / "m1.pt"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if keep >= 0 else keep])
    check_refused(project, PACK, 3, "m1.pt", code="E_CHECKPOINT")


class Payload:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("container", ["zip", "bare"])
def test_a_pickle_with_code_in_it(project, tmp_path, container):
    path, canary = project / "ckpts" / "m1.pt", tmp_path / "canary"
    if container == "zip":
        torch.save({"first.weight": torch.zeros(8, 4), "x": Payload(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(Payload(canary)))
    check_refused(project, PACK, 3, "m1.pt", "mkdir", code="E_UNSAFE_CHECKPOINT")
    assert not canary.exists()


# -- members ---------------------------------------------------------------------------------------


def add_key(state):
    state["extra.weight"] = torch.zeros(2)


def change_shape(state):
    state["first.weight"] = torch.zeros(9, 4)


def change_dtype(state):
    state["first.weight"] = state["first.weight"].half()


MEMBERS = {
    "missing-key": (lambda state: state.pop("last.bias"), ("'last.bias'", "m1.pt")),
    "extra-key": (add_key, ("'extra.weight'", "m1.pt")),
    "other-shape": (change_shape, ("'first.weight'", "(8, 4)", "(9, 4)", "m1.pt")),
    "other-dtype": (change_dtype, ("'first.weight'", "float32", "float16", "m1.pt")),
}


@pytest.mark.parametrize(("change", "facts"), MEMBERS.values(), ids=MEMBERS)
def test_a_member_that_differs(project, change, facts):
    change_state(project / "ckpts" / "m1.pt", change)
    check_refused(project, PACK, 4, *facts, code="E_STACK")


# -- the architecture ------------------------------------------------------------------------------

MODELS = {
    "file-missing": ("nowhere.py:Net", MLP, ("nowhere.py",)),
    "module-missing": ("no_such_package.models:Net", MLP, ("no_such_package",)),
    "name-missing": ("model.py:Nett", MLP, ("'Nett'", "'Net'")),
    "import-fails": ("model.py:Net", "import no_such_thing\n", ("no_such_thing", "model.py:1")),
    "import-raises": ("model.py:Net", "x = 1\nraise RuntimeError('sorry')\n", ("RuntimeError: sorry", "model.py:2")),
    "factory-raises": ("model.py:Net", "def Net():\n    return 1 / 0\n", ("ZeroDivisionError", "model.py:2")),
    "factory-exits": ("model.py:Net", "import sys\ndef Net():\n    sys.exit(0)\n", ("SystemExit", "model.py:3")),
    "no-module": ("model.py:Net", "def Net():\n    return 7\n", ("int", "torch.nn.Module")),
    "no-callable": ("model.py:Net", "Net = 7\n", ("int",)),
}


@pytest.mark.parametrize(("spec", "source", "facts"), MODELS.values(), ids=MODELS)
def test_a_model_that_cannot_be_had(project, spec, source, facts):
    (project / "model.py").write_text(source)
    check_refused(project, (*PACK[:3], spec, *PACK[4:]), 4, *facts, code="E_MODEL")


def test_no_model(project):
    check_refused(project, ("pack", "ckpts", "--input", X, "-o", "e.ts"), 2, "--model", code="E_USAGE")


def test_model_args_that_the_factory_does_not_take(project):
    check_refused(project, (*PACK, "--model-args", '{"depth": 3}'), 4, "depth", code="E_MODEL")


def test_model_args_that_make_another_shape(project):
    check_refused(project, (*PACK, "--model-args", '{"width": 9}'), 4, "first.weight", "(9, 4)", "(8, 4)")


# -- inputs ----------------------------------------------------------------------------------------

FITTING = {
    "other-size": ("x:float32[batch,5]", ("x:float32[batch,5]", "model.py:12")),
    "other-dtype": ("x:int64[batch,4]", ("x:int64[batch,4]",)),
}


@pytest.mark.parametrize(("spec", "facts"), FITTING.values(), ids=FITTING)
def test_an_input_that_does_not_fit(project, spec, facts):
    check_refused(project, (*PACK[:5], spec, *PACK[6:]), 4, *facts, code="E_MODEL_INPUT")


def test_more_inputs_than_the_model_takes(project):
    check_refused(project, (*PACK, "--input", "mask:float32[batch,4]"), 4, "mask", "forward", code="E_MODEL_INPUT")


MALFORMED = ["x", "x:float32", "x:float33[batch]", "x:float32[batch,0]", "x:float32[batch,-1]", "x:float32[a-b]", ""]


@pytest.mark.parametrize("spec", MALFORMED)
def test_a_malformed_input(project, spec):
    check_refused(project, (*PACK[:5], spec, *PACK[6:]), 2, repr(spec), code="E_INPUT_SPEC")


def test_an_input_given_twice(project):
    check_refused(project, (*PACK, "--input", X), 2, "'x'", "twice", code="E_INPUT_SPEC")


def test_a_per_member_name_that_is_no_input(project):
    check_refused(project, (*PACK, "--per-member", "y"), 2, "'y'", "x", code="E_USAGE")


# -- what cannot be packed -------------------------------------------------------------------------


def with_forward(*lines):
    """The MLP with other lines in place of its return statement, which is line 12 of the file."""
    return MLP.replace("return self.last(torch.relu(self.first(x)))", "\n        ".join(lines))


FORWARDS = {
    "random": (("return self.last(torch.relu(self.first(x))) + torch.rand(3)",), 4, "E_RANDOM", ("output", "random")),
    "branch": (
        ("h = self.first(x)", "if h.sum() > 0:", "    h = h * 2", "return self.last(h)"),
        4,
        "E_CONTROL_FLOW",
        ("model.py:13",),
    ),
    "fixed-batch": (
        ("n = int(x.shape[0])", "return self.last(self.first(x)).reshape(3, -1)"),
        6,
        "E_FROZEN_DIM",
        ("'batch'",),
    ),
}


@pytest.mark.parametrize(("lines", "exit_code", "code", "facts"), FORWARDS.values(), ids=FORWARDS)
def test_a_forward_that_cannot_be_packed(project, lines, exit_code, code, facts):
    (project / "model.py").write_text(with_forward(*lines))
    check_refused(project, PACK, exit_code, *facts, code=code)


# -- outputs and environment -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["e.tflite", "e.ONNX.bak"])
def test_an_unknown_suffix(project, name):
    check_refused(project, (*PACK[:-2], "-o", name), 2, repr(name), ".onnx", code="E_USAGE")


def test_an_output_named_twice(project):
    check_refused(project, (*PACK, "-o", "./e.ts"), 2, "twice", code="E_USAGE")


@pytest.mark.parametrize("name", ["e.onnx", "e.ts"])
def test_a_target_that_exists_without_force(project, name):
    (project / name).write_bytes(b"old")
    check_refused(project, PACK, 7, name, "--force", code="E_TARGET_EXISTS")
    assert (project / name).read_bytes() == b"old"


def test_a_failure_after_force_keeps_the_old_bytes(project):
    (project / "e.onnx").write_bytes(b"old")
    (project / "model.py").write_text(with_forward(*FORWARDS["random"][0]))
    check_refused(project, (*PACK, "--force"), 4, "random", code="E_RANDOM")
    assert (project / "e.onnx").read_bytes() == b"old"


def test_a_target_in_a_missing_folder(project):
    check_refused(project, (*PACK, "-o", "there/e.pt2"), 7, "'there'", code="E_OUTPUT")


def test_a_target_that_is_a_folder(project):
    (project / "dir.ts").mkdir()
    check_refused(project, (*PACK, "-o", "dir.ts", "--force"), 7, "dir.ts", code="E_OUTPUT")


@pytest.mark.parametrize("opset", [17, 99, 0])
def test_an_opset_that_cannot_be_written(project, opset):
    check_refused(project, (*PACK, "--opset", opset), 6, f"opset {opset}", code="E_OPSET")


def test_a_tolerance_that_is_not_met(project):
    check_refused(
        project, (*PACK, "--atol", "0", "--rtol", "1e-12"), 5, "output", "member ", "1e-12", code="E_MISMATCH"
    )


def has_cuda():
    import onnxruntime as ort

    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    return torch.cuda.is_available()


@pytest.mark.skipif(has_cuda(), reason="this machine has the CUDA provider and a GPU")
def test_a_provider_that_is_not_there(project):
    check_refused(
        project, (*PACK[:-2], "--target", "cuda"), 7, "cannot run on cuda", "or use the CPU", code="E_PROVIDER"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_torchscript_for_a_gpu_that_is_not_there(project):
    check_refused(project, (*PACK[:6], "-o", "e.ts", "--target", "cuda"), 7, "CUDA", "--target cpu", code="E_PROVIDER")
