import sys

import pytest


@pytest.fixture(autouse=True)
def restored_imports(monkeypatch):
    """Undo what importing a test's model files leaves in sys.path and sys.modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("_ensexport_model_", "ensexport_")):
            del sys.modules[name]
