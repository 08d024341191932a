"""The alternative that goes through `torch.compile`: a module of its own, for the compiler takes seconds to import."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch._dynamo.utils
import torch._inductor.config

from ensexport.bench.torch_loops import job_device, job_members, on_arrays
from ensexport.bench.vmapped import Vmapped
from ensexport.compare import Array
from ensexport.errors import ExportError
from ensexport.timing.graphs import Feed, Job, Run


def vmap(job: Job) -> Run:
    """`torch.vmap` of the stacked modules, compiled once for each batch size.

    Raises:
        ExportError: On the first run: the compiler gives up without an error, and would run eagerly.
    """
    torch._inductor.config.compile_threads = 1  # no processes beside this one, which is killed at the end
    module = Vmapped(job_members(job), job["inputs"], job["per_member"]).to(job_device(job))
    compiled = torch.compile(module, dynamic=False)

    def call(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        outputs: Sequence[torch.Tensor] = compiled(*tensors)
        return outputs

    run = on_arrays(job, call)

    def checked(feed: Feed) -> dict[str, Array]:
        outputs = run(feed)
        if not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
            raise ExportError("torch.compile compiles nothing of it.")
        return outputs

    return checked
