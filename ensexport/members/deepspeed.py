"""What a DeepSpeed checkpoint holds that a plain one does not: weights that lie elsewhere.

Under ZeRO-3 each rank keeps a piece of every weight, so the states file has all names and no numbers.
"""

from __future__ import annotations

import torch

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.folders import ZERO3_HINT
from ensexport.members.wording import join_some, quote_path


def refuse_partitioned(content: object, path: str) -> None:
    """Refuse the states file of DeepSpeed where its weights lie elsewhere; any other content is let through.

    Args:
        content: What the file held.
        path: For messages.

    Raises:
        IncompleteCheckpointError: All tensors under `module` are empty, or one is that has a size by the file's own
            list of shapes (ZeRO-3).
        CheckpointError: There are no weights under `module` (pipeline parallelism).

    Source: DeepSpeed runtime/engine.py (_save_checkpoint: `module`, `param_shapes`, `ds_version`).
    """
    if not (isinstance(content, dict) and "module" in content and {"ds_version", "ds_config"} & content.keys()):
        return
    module = content["module"]
    if not isinstance(module, dict):
        raise CheckpointError(
            f"{quote_path(path)} holds no weights: expected a state dict under 'module', got {type(module).__name__}.",
            hint="Write the whole model into one file with the tool it was trained with.",
        )
    tensors = {name: value for name, value in module.items() if isinstance(value, torch.Tensor)}
    shapes = _declared_shapes(content)
    elsewhere = [
        name
        for name, tensor in tensors.items()
        if tuple(tensor.shape) != shapes.get(name, tuple(tensor.shape)) and not tensor.numel()
    ]
    if tensors and (elsewhere or not any(tensor.numel() for tensor in tensors.values())):
        empty = [repr(name) for name in elsewhere or tensors]
        raise IncompleteCheckpointError(
            f"{quote_path(path)} holds no whole weights: {join_some(empty)} are empty, for ZeRO-3 split them over "
            "several files.",
            hint=ZERO3_HINT,
        )


def _declared_shapes(content: dict[object, object]) -> dict[object, tuple[int, ...]]:
    """The shapes of the parameters, as the file's own list says them (one dict a group of the optimizer)."""
    groups = content.get("param_shapes")
    groups = groups if isinstance(groups, list) else [groups]
    return {
        name: tuple(shape)
        for group in groups
        if isinstance(group, dict)
        for name, shape in group.items()
        if isinstance(shape, torch.Size)
    }
