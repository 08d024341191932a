"""Write N checkpoints of a network, and print what they hold as JSON. A process of its own, for its memory is large.

    python write_checkpoints.py NETWORK FOLDER N

Each is the same random network with noise of its own on every number, so that no tensor is the same in two of them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from networks import NETWORKS

NOISE = 0.01


def write_checkpoints(network: str, folder: Path, n_members: int) -> dict[str, int]:
    """Write `member_0000.pt` and so on.

    Args:
        network: A name of `NETWORKS`.
        folder: Where to.
        n_members: How many. The first so many are always the same.

    Returns:
        Bytes of one member's tensors and of the largest of them, and the number of parameters.
    """
    torch.manual_seed(0)
    module = NETWORKS[network].build()
    base = module.state_dict()
    for index in range(n_members):
        generator = torch.Generator().manual_seed(index)
        state = {
            name: torch.randn(tensor.shape, generator=generator).mul_(NOISE).add_(tensor)
            if tensor.is_floating_point()
            else tensor
            for name, tensor in base.items()
        }
        torch.save(state, folder / f"member_{index:04}.pt")
    sizes = [tensor.numel() * tensor.element_size() for tensor in base.values()]
    n_parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"member_bytes": sum(sizes), "largest_tensor_bytes": max(sizes), "n_parameters": n_parameters}


if __name__ == "__main__":
    print(json.dumps(write_checkpoints(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
