"""Pack two members of one row, with random weights, to ONNX and TorchScript.

    python -m tests.zoo.one timm/resnet10t

Prints one JSON line: seconds, the worst error and the steps down the ladder, or the error and whose it is.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.zoo.rows import ROWS, Row
from tests.zoo.stubs import declare_if_needed


def main(key: str) -> None:
    warnings.simplefilter("ignore")
    library = declare_if_needed()
    result = pack(ROWS[key])
    del library
    print(json.dumps(result))


def pack(row: Row) -> dict[str, Any]:
    """Pack it and return what the page says of it."""
    import ensexport

    with tempfile.TemporaryDirectory() as folder:
        members = [_member(row, Path(folder), seed) for seed in range(2)]
        begin = time.perf_counter()
        try:
            report = ensexport.export(
                ensexport.stack(members),
                [Path(folder) / "zoo.onnx", Path(folder) / "zoo.ts"],
                inputs=row.inputs,
                batches=(1, 3),
                seeds=(0,),
            )
        except ensexport.EnsexportError as error:
            reason = " ".join(error.message.replace(f"{folder}/", "").split())[:400]
            return {"ok": False, "error": f"{error.code}: {reason}", "torch": _torch_export(members[0], row)}
    return {
        "ok": True,
        "seconds": round(time.perf_counter() - begin, 1),
        "max_error": report.validation.worst.max_rel,
        "bound": report.validation.worst.bound,
        "fallbacks": sorted({f"{f.op.removeprefix('aten.')} ({f.step})" for f in report.plan.fallbacks}),
        "strategy": report.plan.strategy,
    }


def _member(row: Row, folder: Path, seed: int) -> nn.Module:
    """Build it as `--model` does and make all that training changes differ between members."""
    from ensexport.members import resolve_architecture

    text, args = f"{row.library}:{row.architecture}", dict(row.args)
    if row.library == "transformers":
        (folder / "config.json").write_text(json.dumps(args))
        text, args = "hf:.", {}
    torch.manual_seed(seed)
    member = resolve_architecture(text, args, folder).build()
    with torch.no_grad():
        for parameter in member.parameters():
            if parameter.dim() <= 1 or parameter.min() == parameter.max():  # what starts equal in all members
                parameter.add_(torch.rand_like(parameter) * 0.1)
        for name, buffer in member.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.add_(torch.rand_like(buffer) * 0.1)
    return member


def _torch_export(member: nn.Module, row: Row) -> str:
    """Say how `torch.export` fares with one member and the same dynamic dims: an empty text when it succeeds."""
    from torch.export import Dim, export

    from ensexport.batching.examples import find_example
    from ensexport.spec import parse_inputs

    specs = parse_inputs(row.inputs)
    shapes = {spec.name: {i: Dim.DYNAMIC for i, dim in enumerate(spec.dims) if isinstance(dim, str)} for spec in specs}
    try:
        feed = find_example(member, specs).feed
        if list(feed) == ["x"]:  # not always the parameter's name
            export(member, (feed["x"],), dynamic_shapes=(shapes["x"],), strict=False)
        else:
            export(member, (), dict(feed), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # noqa: BLE001 - whatever the network or torch raises is the answer
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
