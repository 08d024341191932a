"""Pack two members of one timm architecture, with random weights and a dynamic batch, to ONNX and TorchScript.

    python -m tests.zoo.one resnet10t 3 176 176

Prints one JSON line: seconds per stage, the worst error, the steps down the ladder, or the error.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

from tests.zoo.stubs import declare


def main(name: str, *shape: str) -> None:
    warnings.simplefilter("ignore")
    library = declare()
    import timm

    import ensexport

    assert library is not None
    members = []
    for seed in range(2):
        torch.manual_seed(seed)
        member = timm.create_model(name, pretrained=False).eval()
        with torch.no_grad():
            for parameter in member.parameters():
                if parameter.dim() <= 1:  # norms and biases start equal in all members: make them differ
                    parameter.add_(torch.rand_like(parameter) * 0.1)
        members.append(member)
    begin = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as folder:
            report = ensexport.export(
                ensexport.stack(members),
                [Path(folder) / "zoo.onnx", Path(folder) / "zoo.ts"],
                inputs=[f"x:float32[batch,{','.join(shape)}]"],
                batches=(1, 3),
                seeds=(0,),
            )
    except ensexport.EnsexportError as error:
        print(json.dumps({"ok": False, "error": f"{error.code}: {error.message[:300]}"}))
        return
    print(
        json.dumps(
            {
                "ok": True,
                "seconds": round(time.perf_counter() - begin, 1),
                "max_error": report.validation.worst.max_rel,
                "bound": report.validation.worst.bound,
                "fallbacks": sorted({f"{f.op.removeprefix('aten.')} ({f.step})" for f in report.plan.fallbacks}),
                "strategy": report.plan.strategy,
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
