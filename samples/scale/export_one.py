"""Export one member with `torch.onnx.export`, as its user would: the least that packing can be compared with.

python export_one.py NETWORK CHECKPOINT OUT.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from networks import NETWORKS


def export_one(network: str, checkpoint: Path, output: Path) -> None:
    """Load a checkpoint and write it as ONNX with a dynamic batch."""
    module = NETWORKS[network].build()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    example = torch.randn(2, *NETWORKS[network].shape)
    dims = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(module.eval(), (example,), output, dynamo=True, dynamic_shapes=dims, verbose=False)


if __name__ == "__main__":
    export_one(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
