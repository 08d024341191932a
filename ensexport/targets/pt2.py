"""Batched graph -> `.pt2`, torch's own exported-program archive (the successor of TorchScript)."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping

import torch

from ensexport.batching.engine import BatchedGraph
from ensexport.targets.program import build_program


def pt2_bytes(batched: BatchedGraph, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the `.pt2` archive of a batched graph.

    Args:
        batched: The graph.
        weights: The packed initializers by name.
        metadata: Written as extra files, name -> text.
    """
    program = build_program(batched, weights)
    for node in program.graph.nodes:
        node.meta = {key: node.meta[key] for key in ("val", "tensor_meta") if key in node.meta}
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer, extra_files=dict(metadata))
    return buffer.getvalue()
