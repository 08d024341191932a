import functools
import signal
import sys

import onnxscript._framework_apis.torch_2_5 as _exporter_api
import pytest
import torch

torch.set_num_threads(1)  # the models here are tiny: on a busy machine more threads only wait for each other

# The exporter parses onnxscript's 497 functions anew for each export, 1.4 s each time; the list never changes.
_exporter_api.get_torchlib_ops = functools.cache(_exporter_api.get_torchlib_ops)


# A shell starts what runs in its background with SIGINT ignored, and processes started here would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Let every test draw the same numbers, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def restored_imports(monkeypatch):
    """Undo what importing a test's model files leaves in sys.path and sys.modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("_ensexport_model_", "ensexport_")):
            del sys.modules[name]
