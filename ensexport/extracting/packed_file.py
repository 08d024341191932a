"""A packed file as members are taken out of it: its recipe, and one member's weights, read at their places.

Nothing else of the weights is read: a member out of a file of gigabytes costs a member's bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype

from ensexport.batching.weights import PackedWeight
from ensexport.dtypes import Conversion
from ensexport.emission import OutputEmission, from_json, hidden_of
from ensexport.errors import ArtifactError, UsageError
from ensexport.output_files import RENAMED_KEY
from ensexport.recipe.coding import KEY, decode
from ensexport.recipe.member_reading import MemberRecipe, read_member_recipe
from ensexport.recipe.recovery import piece_number
from ensexport.recipe.state_file import STATE_FILE
from ensexport.runtime import read_metadata
from ensexport.spec import TensorSpec, artifact_format, parse_inputs
from ensexport.targets.onnx_file import weight_of
from ensexport.targets.onnx_places import Place, find_places

_IN_A_PACKAGE = ("model.onnx", "1/model.onnx", "1/model.onnx/model.onnx")


@dataclass(frozen=True)
class PackedFile:
    """A packed ONNX file.

    Attributes:
        path: The file.
        shown_as: What the user named: the file, or the package it is in.
        state: The package's file of the members' own tensors; None if there is none.
        metadata: What the file says of itself.
        specs: Its inputs, as one member sees them.
        emitted: What each output of a member became.
        ranges: Dynamic dim -> smallest and largest size (None = no end).
        recipe: The member half of its recipe, as JSON.
    """

    path: Path
    shown_as: str
    state: Path | None
    metadata: Mapping[str, Any]
    specs: tuple[TensorSpec, ...]
    emitted: tuple[OutputEmission, ...]
    ranges: Mapping[str, tuple[int, int | None]]
    recipe: Mapping[str, Any]

    @property
    def n_members(self) -> int:
        """N."""
        return int(self.metadata["n_members"])

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of a member's outputs, in order."""
        return tuple(entry.output for entry in self.emitted)

    @property
    def hidden(self) -> tuple[str, ...]:
        """Those that the file does not return."""
        return hidden_of(self.emitted)

    @property
    def conversion(self) -> Conversion | None:
        """What the file does in another dtype than its members."""
        return Conversion.from_json(self.metadata.get("dtypes"))

    def member(self, member_index: int) -> Mapping[str, Any]:
        """What the file says of a member.

        Raises:
            UsageError: There is no such member.
        """
        if not 0 <= member_index < self.n_members:
            raise UsageError(
                f"'{self.shown_as}' has no member {member_index}: expected 0 to {self.n_members - 1}.",
                hint="`ensexport inspect` lists the members.",
            )
        record = self.metadata["members"][member_index]
        if not isinstance(record, dict) or not {"index", "name", "sha256", "weights_sha256"} <= record.keys():
            raise ArtifactError(f"cannot use '{self.shown_as}': it does not say what member {member_index} is.")
        return record

    def member_recipe(self, *, with_graph: bool) -> MemberRecipe:
        """Read the recipe.

        Raises:
            ArtifactError: It is damaged.
        """
        with reading_recipe(self.shown_as):
            return read_member_recipe(self.recipe, self.specs, self.ranges, self.outputs, with_graph=with_graph)

    def digests(self) -> dict[str, str]:
        """SHA-256 of the file, and of the external data beside it."""
        digests = {}
        for name, path in (("sha256", self.path), ("data_sha256", self.path.with_name(f"{self.path.name}.data"))):
            if path.exists():
                with path.open("rb") as file:
                    digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        return digests


@contextlib.contextmanager
def reading_recipe(shown_as: str) -> Iterator[None]:
    """Refuse a file whose recipe does not fit together, which only working with it may show."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ArtifactError(
            f"cannot use '{shown_as}': its recipe is damaged ({type(error).__name__}: {str(error)[:200]}).",
            hint="Give a file as ensexport packed it.",
        ) from error


def open_packed(artifact: str | Path) -> PackedFile:
    """Read what a packed file, or the one in a package, says of itself.

    Args:
        artifact: An `.onnx` file that ensexport packed, or a package folder that holds one.

    Raises:
        UsageError: It is of another format.
        ArtifactError: It cannot be read, was not packed by ensexport, or holds no recipe.
    """
    given = Path(artifact)
    path, state = given, None
    if given.is_dir():
        path = next((given / name for name in _IN_A_PACKAGE if (given / name).is_file()), given / _IN_A_PACKAGE[0])
        state = given / STATE_FILE if (given / STATE_FILE).is_file() else None
        if not path.exists():
            raise ArtifactError(
                f"cannot use '{artifact}': the folder holds no {' and no '.join(_IN_A_PACKAGE[:2])}.",
                hint="Give an .onnx file that ensexport packed, or a package with one.",
            )
    elif artifact_format(path) != "onnx":
        raise UsageError(
            f"cannot take a member out of '{artifact}': expected an .onnx file.",
            hint="Give the .onnx file that was packed beside it, or a package.",
        )
    metadata = read_metadata(path)
    recipe = _recipe(artifact, metadata)
    with reading_recipe(str(artifact)):
        return PackedFile(
            path,
            str(artifact),
            state,
            metadata,
            parse_inputs(metadata["inputs"]),
            from_json(metadata.get("emit"), metadata["outputs"]),
            {str(name): (int(low), None if high is None else int(high)) for name, (low, high) in _dims(metadata)},
            recipe,
        )


def _dims(metadata: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    dims: Mapping[str, Any] = metadata["dims"]
    return dims.items()


def _recipe(artifact: str | Path, metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    text = metadata.get(KEY)
    recipe = decode(text).get("member") if isinstance(text, str) else None
    if not isinstance(recipe, dict):
        raise ArtifactError(
            f"cannot take a member out of '{artifact}': it carries no recipe for that.",
            hint="It was packed by an older ensexport: pack again.",
        )
    return recipe


class Pieces:
    """One member's share of a file's weights.

    Args:
        file: The file.
        recipe: Its recipe, read.
        member_index: The member.

    Raises:
        ArtifactError: The file cannot be read as ONNX.
    """

    def __init__(self, file: PackedFile, recipe: MemberRecipe, member_index: int) -> None:
        self._places = find_places(file.path).initializers
        self._renamed: Mapping[str, str] = file.metadata.get(RENAMED_KEY, {})
        self._recipe, self._file, self._member_index = recipe, file, member_index

    def __len__(self) -> int:
        """One member: what a graph of one is filled from."""
        return 1

    def visit(self, member_index: int, use: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        """Call `use` with the pieces that the member's graph reads."""
        assert self._recipe.graph is not None
        use(self.read(self._recipe.graph.weights.graph))

    def read(self, graph: Any) -> dict[str, torch.Tensor]:
        """Read the pieces that a recovery graph takes.

        Raises:
            ArtifactError: An initializer is missing, or has another shape than the recipe says.
        """
        leaves = [node for node in graph.nodes if node.op == "placeholder"]
        return {str(leaf.target): self._piece(piece_number(str(leaf.target)), leaf.meta["val"]) for leaf in leaves}

    def _piece(self, number: int, fake: torch.Tensor) -> torch.Tensor:
        holders = self._recipe.pieces.get(number, ())
        for weight, place, dtype in self._found(holders):
            sized = replace(weight, piece_shape=tuple(fake.shape), dtype=dtype)
            offset = sized.place(0 if weight.kind == "shared" else self._member_index)
            if offset is None:
                continue
            self._check(sized, place)
            return self._values(place, offset, sized).to(fake.dtype)
        names = ", ".join(repr(weight.name) for weight in holders[:3]) or f"number {number}"
        raise ArtifactError(
            f"cannot use '{self._file.shown_as}': the weights {names} hold nothing of member {self._member_index}.",
            hint="Give a file as ensexport packed it; tools that optimise a graph rename or merge its weights.",
        )

    def _found(self, holders: Iterable[PackedWeight]) -> Iterable[tuple[PackedWeight, Place, torch.dtype]]:
        for weight in holders:
            place = self._places.get(self._renamed.get(weight.name, weight.name))
            if place is not None:
                try:
                    dtype = to_torch_dtype(ir.DataType(place.data_type))
                except (TypeError, ValueError, KeyError) as error:
                    raise self._damaged(weight, f"it has the unknown dtype {place.data_type}") from error
                yield weight, place, dtype

    def _check(self, weight: PackedWeight, place: Place) -> None:
        expected = weight.shape(self._file.n_members)
        if place.shape not in (expected, weight_of(expected, weight.dtype).shape, (*expected, 2)):
            raise self._damaged(weight, f"expected shape {expected}, got {place.shape}")
        if place.n_bytes != math.prod(place.shape) * weight.dtype.itemsize:
            raise self._damaged(weight, f"expected {math.prod(place.shape)} values, got {place.n_bytes} bytes")

    def _values(self, place: Place, offset: int, weight: PackedWeight) -> torch.Tensor:
        is_complex = len(place.shape) == len(weight.shape(self._file.n_members)) + 1
        shape = (*weight.piece_shape, 2) if is_complex else weight.piece_shape
        n_bytes = math.prod(shape) * weight.dtype.itemsize
        if not n_bytes:
            return torch.empty(weight.piece_shape, dtype=weight.dtype)
        with place.file.open("rb") as file:
            file.seek(place.offset + offset * (2 if is_complex else 1))
            data = bytearray(file.read(n_bytes))
        if len(data) != n_bytes:
            raise self._damaged(weight, "the file ends before its values do")
        values = torch.frombuffer(data, dtype=weight.dtype).reshape(shape)
        return torch.view_as_complex(values) if is_complex else values

    def _damaged(self, weight: PackedWeight, why: str) -> ArtifactError:
        return ArtifactError(
            f"cannot use '{self._file.shown_as}': its weight '{weight.name[:80]}' does not fit the recipe: {why}.",
            hint="Give a file as ensexport packed it.",
        )
