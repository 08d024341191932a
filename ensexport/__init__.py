"""Pack the N trained checkpoints of one architecture into one batched graph, proven equal to the loop.

    members  = ensexport.load_members("ckpts/", model=SimpleMLP)
    ensemble = ensexport.stack(members)
    ensexport.export(ensemble, "ensemble.onnx", inputs=["x:float32[batch,1,28,28]"])

Names are loaded when first used: `import ensexport` and `ensexport --help` do not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ensexport.errors import EnsexportError
from ensexport.spec import TensorSpec, Tolerance
from ensexport.version import __version__

if TYPE_CHECKING:
    from ensexport.members import Members, load_members
    from ensexport.pipeline import export
    from ensexport.stacking import Ensemble, stack
    from ensexport.validation import validate

__all__ = [
    "Ensemble",
    "EnsexportError",
    "Members",
    "TensorSpec",
    "Tolerance",
    "__version__",
    "export",
    "load_members",
    "stack",
    "validate",
]

_HOMES = {
    "Ensemble": "ensexport.stacking",
    "Members": "ensexport.members",
    "export": "ensexport.pipeline",
    "load_members": "ensexport.members",
    "stack": "ensexport.stacking",
    "validate": "ensexport.validation",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
