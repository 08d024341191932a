"""A batched graph -> the recipe that its files carry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ensexport.batching.engine import BatchedGraph
from ensexport.dtypes import Conversion
from ensexport.errors import ExportError
from ensexport.recipe.coding import KEY, encode
from ensexport.recipe.member import member_recipe
from ensexport.recipe.own_tensors import OwnTensors
from ensexport.recipe.weights import weights_to_json


def make_recipe(
    batched: BatchedGraph,
    *,
    fills_buffers: bool,
    conversion: Conversion | None,
    own: OwnTensors,
    sizes: Mapping[str, int],
) -> dict[str, str]:
    """Return the entry of a file's metadata that holds its recipe.

    What cannot be written is left out, and the recipe says why: such a file is as good as any, but no member of it
    can be swapped.

    Args:
        batched: The graph, as it is written.
        fills_buffers: Does the architecture fill buffers when it is called first?
        sizes: Size of each dynamic dim at which the members were seen to run.
        conversion: What the graph was converted by.
        own: The members' own tensors.
    """
    recipe: dict[str, Any] = {"member": member_recipe(batched, conversion, own, sizes)}
    try:
        recipe["weights"] = weights_to_json(batched.weights, fills_buffers=fills_buffers, sizes=sizes)
    except ExportError as error:
        recipe["no_weights"] = error.message
    return {KEY: encode(recipe)}
