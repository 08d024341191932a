"""What must be known of a file before one of its members is replaced, read without its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ensexport.batching.weights import PackedWeight
from ensexport.errors import ArtifactError
from ensexport.output_files import RENAMED_KEY
from ensexport.recipe.coding import KEY, decode
from ensexport.recipe.weights import WeightRecipe, weights_from_json
from ensexport.runtime.runner import METADATA_KEY, check_metadata
from ensexport.spec import artifact_format
from ensexport.targets.onnx_places import OnnxPlaces, find_places
from ensexport.targets.torch_archive import record_start
from ensexport.targets.torch_places import find_slots


@dataclass(frozen=True)
class Span:
    """Where all members' values of one packed weight lie.

    Attributes:
        file: The file on disk.
        offset: Where in it they begin.
        n_bytes: How long they are.
        name: What the file calls them: the initializer, or the archive's record.
        start: Where in the record they begin; 0 for ONNX.
    """

    file: Path
    offset: int
    n_bytes: int
    name: str
    start: int = 0


@dataclass(frozen=True)
class Contents:
    """A file that ensexport packed.

    Attributes:
        path: The file.
        kind: Its format.
        metadata: What it says of itself.
        recipe: How a member is packed into it.
        spans: Name of a packed weight -> where it lies; those that the format has no use for are missing.
        places: Of an ONNX file, where its graph ends and its external data lies.
    """

    path: Path
    kind: str
    metadata: dict[str, Any]
    recipe: WeightRecipe
    spans: Mapping[str, Span]
    places: OnnxPlaces | None

    @property
    def n_members(self) -> int:
        """N."""
        return int(self.metadata["n_members"])

    def shared_bytes(self, weight: PackedWeight) -> bytes | None:
        """The values of a weight that is kept once; None if the format has no use for it."""
        span = self.spans.get(weight.name)
        if span is None:
            return None
        with span.file.open("rb") as file:
            file.seek(span.offset)
            return file.read(span.n_bytes)


def read_contents(path: Path) -> Contents:
    """Read what a file says of itself, and find its weights. Nothing of it is run.

    Args:
        path: An `.onnx`, `.ts` or `.pt2` file.

    Raises:
        ArtifactError: It cannot be read, was not written by ensexport, or carries no recipe.
    """
    kind = artifact_format(path)
    if not path.is_file():
        raise ArtifactError(f"cannot read '{path}': there is no such file.", hint="Check the path.")
    places = find_places(path) if kind == "onnx" else None
    metadata = check_metadata(_metadata_text(path, places), path)
    recipe = _recipe(path, metadata)
    weights = recipe.program.packed
    if places is not None:
        renamed = metadata.get(RENAMED_KEY, {})
        names = {w.name: str(renamed.get(w.name, w.name)) for w in weights}
        found = {name: places.initializers[own] for name, own in names.items() if own in places.initializers}
        spans = {name: Span(place.file, place.offset, place.n_bytes, names[name]) for name, place in found.items()}
    else:
        slots = find_slots(path, [weight.name for weight in weights])
        starts = record_start(path)
        spans = {
            name: Span(path, starts[slot.record] + slot.offset, slot.n_bytes, slot.record, slot.offset)
            for name, slot in slots.items()
        }
    for weight in weights:
        span = spans.get(weight.name)
        if span is not None and span.n_bytes != weight.n_bytes(metadata["n_members"]):
            raise ArtifactError(
                f"cannot use '{path}': its recipe does not fit it: expected {weight.n_bytes(metadata['n_members'])} "
                f"bytes for '{weight.name[:80]}', got {span.n_bytes}.",
                hint="The file is damaged: pack again.",
            )
    return Contents(path, kind, metadata, recipe, spans, places)


def _metadata_text(path: Path, places: OnnxPlaces | None) -> str:
    if places is None:
        from ensexport.runtime.torch_runner import read_torch_metadata

        return read_torch_metadata(path)
    from ensexport.targets.onnx_tail import read_tail

    tail = read_tail(path, places.graph_end)
    return next((entry.value for entry in tail.metadata_props if entry.key == METADATA_KEY), "")


def _recipe(path: Path, metadata: Mapping[str, Any]) -> WeightRecipe:
    text = metadata.get(KEY)
    if not isinstance(text, str):
        raise ArtifactError(
            f"cannot swap a member of '{path}': it carries no recipe of its weights, as files that ensexport "
            f"{str(metadata.get('ensexport_version', ''))[:40]} packed do not all.",
            hint="Pack again with this version.",
        )
    try:
        recipe = decode(text)
        if "weights" not in recipe:
            raise ArtifactError(
                f"how its weights were made could not be written down: {str(recipe.get('no_weights', ''))[:300]}",
                hint="Pack again with all checkpoints.",
            )
        return weights_from_json(recipe["weights"], metadata["n_members"])
    except ArtifactError as error:
        raise ArtifactError(f"cannot swap a member of '{path}': {error.message}", hint=error.hint) from error
