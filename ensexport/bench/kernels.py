"""Which kernels one call of an ONNX file runs, as ONNX Runtime's own profile tells it.

The file lists nodes; what costs time is the kernels left after ONNX Runtime has fused, folded and re-laid them, and
those are only seen by running it.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort

from ensexport.compare import Array
from ensexport.runtime.onnx_runner import OnnxRunner

_KERNEL = "_kernel_time"


def count_kernels(path: Path, provider: str, feed: Mapping[str, Array]) -> dict[str, int]:
    """Count the kernels of one `session.run` by op type, after all graph optimisations.

    Names are ONNX Runtime's: a fused `Gemm` and `Relu` is a `FusedGemm`, a copy to or from the device a
    `MemcpyFromHost`. The body of an `If`, `Loop` or `Scan` counts as often as it runs, the op itself once. The first of
    two runs is left out: it may do what later ones need not.

    Args:
        path: An ONNX file.
        provider: `cpu`, `cuda` or `tensorrt`.
        feed: The inputs by name.

    Returns:
        Op type -> how many, the most frequent first.

    Raises:
        ArtifactError: The file cannot be loaded.
        ProviderError: The provider is not there.
    """
    with tempfile.TemporaryDirectory(prefix="ensexport-kernels-") as folder:
        options = profiling_options(Path(folder))
        runner = OnnxRunner(path, provider=provider, options=options)
        for _ in range(2):
            runner.run(feed)
        events = kernel_events(Path(runner.session.end_profiling()))
    return dict(Counter(str(event["args"]["op_name"]) for event in events).most_common())


def profiling_options(folder: Path) -> ort.SessionOptions:
    """Return the options of a session that writes its profile into `folder`."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    return options


def kernel_events(profile: Path) -> list[dict[str, Any]]:
    """Return the events of the kernels that the last run in a profile ran, in order.

    `name` is the name of the node; `args` has `op_name`, `input_type_shape` and
    `output_type_shape`, where optional inputs that are absent have no entry.

    Source: https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html; fields as ONNX Runtime 1.31
    writes them.
    """
    events = json.loads(profile.read_text())
    begin = max(event["ts"] for event in events if event["name"] == "model_run")
    return [
        {**event, "name": event["name"].removesuffix(_KERNEL)}
        for event in events
        if event["cat"] == "Node" and event["name"].endswith(_KERNEL) and event["ts"] >= begin
    ]
