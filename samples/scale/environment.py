"""Print as JSON what this machine and its libraries are. A process of its own: it loads torch and ONNX Runtime."""

from __future__ import annotations

import json
import os

import onnx

import ensexport
from ensexport.bench.environment import describe_environment

_NAMES = ("processor", "threads", "python", "torch", "onnxruntime")

if __name__ == "__main__":
    facts = describe_environment("cpu", "", "")
    memory_mb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    found = {name: facts[name] for name in _NAMES} | {"memory_mb": round(memory_mb)}
    print(json.dumps(found | {"onnx": onnx.__version__, "ensexport": ensexport.__version__}))
