"""A manifest that is right, as a dict to be changed."""

from __future__ import annotations

from typing import Any

SHA = "0" * 64


def make_manifest(**changes: Any) -> dict[str, Any]:
    """Two members, one ONNX file, one sample; arguments replace what stands at the top."""
    sample = "test_data_set_0"
    manifest = {
        "schema_version": 1,
        "tool": {"name": "ensexport", "version": "0.1.0"},
        "libraries": {"python": "3.11.7", "onnx": "1.23.2"},
        "layout": "folder",
        "name": None,
        "files": [
            {"path": path, "format": kind, "size_bytes": 1, "sha256": SHA}
            for path, kind in [
                ("README.md", "card"),
                ("model.onnx", "onnx"),
                (f"{sample}/input_0.pb", "sample"),
                (f"{sample}/output_0.pb", "sample"),
            ]
        ],
        "opset": 20,
        "n_members": 2,
        "member_axis": 0,
        "members": [
            {"index": k, "name": f"m{k}.pt", "sha256": SHA, "weights_sha256": SHA, "container_key": None,
             "stripped_prefix": None}
            for k in range(2)
        ],
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 4], "is_per_member": False,
                    "is_optional": False}],
        "outputs": [{"name": "output", "dtype": "float32", "shape": [2, "batch", 3], "formula": "y_k"}],
        "dims": {"batch": [1, None]},
        "emit": [{"output": "output", "names": ["members"], "class_axis": -1}],
        "member_weights": None,
        "dtypes": None,
        "plan": {"strategy": "auto", "target": "portable",
                 "stages": [{"form": "batched", "layers": 2, "first": "linear"}], "fallbacks": [], "winner": None,
                 "trials": []},
        "validation": {
            "passed": True, "members": "all", "tolerance": 1e-5, "max_error": 1e-7, "batches": [1, 2], "seeds": [0, 1],
            "top1": {"output": {"differs": 0, "inputs": 8, "share": 0.0}},
            "table": [{"file": "model.onnx", "provider": "CPUExecutionProvider", "optimization": "all",
                       "output": "output", "comparisons": 4, "max_abs": 1e-7, "max_rel": 1e-7, "bound": 1e-5,
                       "passed": True}],
        },
        "notes": [],
        "swaps": [],
        "samples": [
            {"folder": sample, "source": "seed 0", "expected_from": "loop", "batch": 2,
             "inputs": [{"path": f"{sample}/input_0.pb", "name": "x"}],
             "outputs": [{"path": f"{sample}/output_0.pb", "name": "output", "bound": 1e-5, "member_axis": 0}]}
        ],
    }  # fmt: skip
    return manifest | changes
