"""A file -> its copy with some bytes of its weights, and its metadata, changed. All else keeps its bytes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ensexport.errors import ArtifactError
from ensexport.output_files import data_file
from ensexport.runtime.runner import METADATA_FILE, METADATA_KEY
from ensexport.swapping.contents import Contents
from ensexport.swapping.pieces import Patch
from ensexport.targets.torch_archive import rewrite_archive


def write_patched(
    contents: Contents, staged: Path, name: str, patches: Sequence[Patch], metadata: Mapping[str, Any]
) -> None:
    """Write the changed copy of a file.

    Args:
        contents: The file.
        staged: Where to write; external data goes beside it.
        name: What the copy will be called.
        patches: What is written into its weights.
        metadata: What it says of itself from now on.

    Raises:
        ArtifactError: The file is not as ensexport writes it.
        OSError: The system refuses.
    """
    text = json.dumps(metadata, sort_keys=True)
    if contents.places is None:
        records: dict[str, list[tuple[int, memoryview]]] = {}
        for patch in patches:
            span = contents.spans[patch.weight]
            records.setdefault(span.name, []).append((span.start + patch.offset, patch.values))
        rewrite_archive(contents.path, staged, records, {f"extra/{METADATA_FILE}": text.encode()})
        return
    _write_onnx(contents, staged, name, text)
    _write_weights(contents, staged, patches)


def _write_onnx(contents: Contents, staged: Path, name: str, text: str) -> None:
    from ensexport.targets.onnx_tail import read_tail, read_without_weights, set_metadata

    places = contents.places
    assert places is not None
    if len(places.data) > 1:
        names = ", ".join(file.name for file in places.data[:3])
        raise ArtifactError(
            f"cannot use '{contents.path}': its weights lie in several files ({names} ...).",
            hint="Give a file that ensexport packed.",
        )
    if places.data:
        model = read_without_weights(contents.path, f"{name}.data")
        set_metadata(model, METADATA_KEY, text)
        staged.write_bytes(model.SerializeToString())
        shutil.copyfile(places.data[0], data_file(staged))
        return
    tail = read_tail(contents.path, places.graph_end)
    set_metadata(tail, METADATA_KEY, text)
    shutil.copyfile(contents.path, staged)
    with staged.open("rb+") as file:
        file.truncate(places.graph_end)
        file.seek(places.graph_end)
        file.write(tail.SerializeToString())


def _write_weights(contents: Contents, staged: Path, patches: Sequence[Patch]) -> None:
    assert contents.places is not None
    target = data_file(staged) if contents.places.data else staged
    with target.open("rb+") as file:
        for patch in patches:
            span = contents.spans.get(patch.weight)
            if span is None:
                continue  # the format has no use for it
            offset, done = span.offset + patch.offset, 0
            while done < len(patch.values):
                done += os.pwrite(file.fileno(), patch.values[done:], offset + done)
