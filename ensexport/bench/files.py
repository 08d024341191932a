"""The files that alternatives need: written into a temporary folder, and what cannot be written is named."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from ensexport.batching.examples import find_example, range_from_json
from ensexport.batching.member_graph import capture_member
from ensexport.bench.contents import Contents
from ensexport.bench.names import BOUND_LOOPS, SESSION_LOOPS, other_format
from ensexport.bench.vmapped import Vmapped, export_vmapped
from ensexport.compare import Array
from ensexport.errors import EnsexportError, UsageError
from ensexport.members import Members
from ensexport.pipeline import export
from ensexport.probes import make_probes, through
from ensexport.runtime import member_specs
from ensexport.runtime.torch_runner import array_from_tensor
from ensexport.spec import TensorSpec
from ensexport.stacking.state import named_tensors
from ensexport.targets.onnx import DEFAULT_OPSET, member_onnx_model, write_onnx

Feeds = dict[int | None, dict[str, Array]]


@dataclass
class Files:
    """What was prepared for one ensemble.

    Attributes:
        folder: Where it lies.
        paths: Alternative -> its file, good at every batch size.
        by_batch: `(alternative, batch)` -> its file for this batch size only.
        left_out: Alternative -> why it has none.
    """

    folder: Path
    paths: dict[str, Path] = field(default_factory=dict)
    by_batch: dict[tuple[str, int | None], Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def member_paths(self, n_members: int) -> list[str]:
        """The members' own ONNX files."""
        return [str(self.folder / f"member_{k}.onnx") for k in range(n_members)]

    def path(self, kind: str, batch: int | None) -> Path | None:
        """The file of an alternative."""
        return self.paths.get(kind, self.by_batch.get((kind, batch)))


def make_feeds(metadata: Mapping[str, Any], members: Members, batches: Sequence[int]) -> Feeds:
    """Random inputs of the ensemble at each batch size; one feed under None if no dim is dynamic.

    Raises:
        UsageError: The artifact does not take a batch size.
    """
    specs = member_specs(metadata)
    probes = make_probes(
        specs,
        metadata["per_member"],
        len(members),
        example_sizes=find_example(members.build(0), specs).sizes,
        dim_ranges={name: (low, high) for name, (low, high) in metadata["dims"].items()},
        ranges={name: range_from_json(values) for name, values in metadata.get("ranges", {}).items()},
        batches=batches,
        seeds=(0,),
    )
    probes = through(probes, Contents.of(metadata).conversion)
    feeds = {probe.batch: {n: array_from_tensor(t) for n, t in probe.feed.items()} for probe in probes}
    if None not in feeds and set(feeds) != set(batches):
        missing = ", ".join(str(batch) for batch in batches if batch not in feeds)
        raise UsageError(f"the artifact does not take batch {missing}: its dims are {dict(metadata['dims'])}.")
    return feeds


def prepare(
    artifact: Path,
    metadata: Mapping[str, Any],
    members: Members,
    folder: Path,
    alternatives: Sequence[str],
    feeds: Feeds,
    *,
    provider: str,
) -> Files:
    """Write the files that alternatives need.

    Args:
        artifact: The artifact; it is packed anew where it holds another number of members.
        metadata: What it says of itself.
        members: The members to measure: all of the artifact's, or the first few.
        folder: Where to write.
        alternatives: What is compared with it.
        feeds: Inputs at each batch size.
        provider: Where files are proven.

    Raises:
        EnsexportError: The first few members cannot be packed.
    """
    specs = member_specs(metadata)
    contents = Contents.of(metadata)
    opset = _opset(artifact)
    pack = functools.partial(
        export,
        members,
        inputs=specs,
        per_member=metadata["per_member"],
        output_names=contents.outputs,
        opset=opset,
        target=metadata.get("target", "portable"),
        batches=(3,),
        seeds=(0,),
    )
    packed = artifact
    if len(members) != metadata["n_members"]:
        packed = folder / f"packed{artifact.suffix}"
        strategy = "unrolled" if metadata.get("strategy") == "unrolled" else "auto"
        pack(
            packed,
            member_axis=metadata["member_axis"],
            strategy=strategy,
            emission=contents.emission,
            weights=contents.first_weights(len(members)),
            dtypes=contents.dtypes,
        )
    own = dict.fromkeys(("packed", "packed-again", "packed-bound", "packed-cuda-graph"), packed)
    files = Files(folder, own)

    def attempt(kinds: Sequence[str], write: Callable[[], object]) -> bool:
        try:
            write()
        except EnsexportError as error:
            files.left_out.update(dict.fromkeys(kinds, error.message))
            return False
        return True

    loops = [kind for kind in (*SESSION_LOOPS, *BOUND_LOOPS) if kind in alternatives]
    if loops:
        attempt(loops, lambda: write_member_files(members, specs, contents.outputs, folder))
    other = other_format(artifact)
    graphs = {other: (f"other{'.ts' if other == 'torchscript' else '.onnx'}", "auto")}
    graphs["unrolled"] = ("unrolled.onnx", "unrolled")
    for kind, (name, strategy) in graphs.items():
        path = folder / name
        if kind in alternatives and attempt([kind], functools.partial(pack, path, strategy=strategy)):
            files.paths[kind] = path
    if "vmap-onnx" in alternatives:
        attempt(["vmap-onnx"], lambda: _write_vmapped(members, metadata, files, feeds, opset or DEFAULT_OPSET))
    return files


def _opset(artifact: Path) -> int | None:
    """What the artifact was written for; None where it is no ONNX file."""
    if artifact.suffix != ".onnx":
        return None
    model = onnx.load(str(artifact), load_external_data=False)
    return next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), None)


def write_member_files(members: Members, specs: Sequence[TensorSpec], outputs: Sequence[str], folder: Path) -> None:
    """Write each member as an ONNX file of its own, `member_K.onnx`: what a loop over sessions runs."""
    module = members.build(0)
    model, sources = member_onnx_model(capture_member(module, specs, find_example(module, specs)), outputs)
    for index in range(len(members)):
        state = named_tensors(members.build(index))
        weights = {name: state[source] for name, source in sources.items() if source in state}
        write_onnx(model, folder / f"member_{index}.onnx", weights, {})


def _write_vmapped(
    members: Members, metadata: Mapping[str, Any], files: Files, feeds: Feeds, opset: int
) -> None:  # fmt: skip
    """Write the plain vmap graph, a file a batch size: it is right for the one it was exported with."""
    specs = member_specs(metadata)
    module = Vmapped(members, [spec.name for spec in specs], metadata["per_member"])
    for number, (batch, feed) in enumerate(feeds.items()):
        path = files.folder / f"vmap_{number}.onnx"
        export_vmapped(module, path, feed, Contents.of(metadata).outputs, opset=opset)
        files.by_batch["vmap-onnx", batch] = path


def weight_bytes(members: Members) -> int:
    """Bytes of all members' parameters and buffers."""
    return len(members) * sum(tensor.nbytes for tensor in named_tensors(members.build(0)).values())
