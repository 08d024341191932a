"""Alternatives in torch: the members one by one, and `torch.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ensexport.compare import Array
from ensexport.errors import ProviderError
from ensexport.members import Members, load_members
from ensexport.members.selection import Selection
from ensexport.members.trust import Trust
from ensexport.runtime.torch_runner import array_from_tensor, tensor_from_array
from ensexport.stacking import stack
from ensexport.stacking.binding import bind_inputs
from ensexport.stacking.outputs import flatten_outputs
from ensexport.timing.graphs import Feed, Job, Run


def loop(job: Job) -> Run:
    """N modules one after the other."""
    members = job_members(job)
    modules: list[nn.Module] = [members.build(k).to(job_device(job)) for k in range(len(members))]
    binding = bind_inputs(modules[0], job["inputs"])
    is_per_member = [name in job["per_member"] for name in job["inputs"]]

    def call(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        results = []
        for k, module in enumerate(modules):
            own = [t[k] if split else t for t, split in zip(tensors, is_per_member, strict=True)]
            results.append(list(flatten_outputs(binding.call(module, own)).values()))
        return [torch.stack([result[i] for result in results]) for i in range(len(job["outputs"]))]

    return on_arrays(job, call)


def vmap(job: Job) -> Run:
    """The stacked module, as the PyTorch tutorial runs it."""
    members = job_members(job)
    binding = bind_inputs(members.build(0), job["inputs"])
    call_order = [*binding.positions, *(i for i, keyword in enumerate(binding.keywords) if keyword is not None)]
    in_dims = tuple(0 if binding.names[i] in job["per_member"] else None for i in call_order)
    ensemble = stack(members, in_dims=in_dims).to(job_device(job))
    return on_arrays(job, lambda tensors: list(flatten_outputs(binding.call(ensemble, tensors)).values()))


def on_arrays(job: Job, call: Callable[[Sequence[torch.Tensor]], Sequence[torch.Tensor]]) -> Run:
    """NumPy arrays in, NumPy arrays out."""
    device = job_device(job)

    def run(feed: Feed) -> dict[str, Array]:
        with torch.no_grad():
            values = call([tensor_from_array(array).to(device) for array in feed.values()])
        return {name: array_from_tensor(value) for name, value in zip(job["outputs"], values, strict=True)}

    return run


def job_members(job: Job) -> Members:
    """Load the members that a job names."""
    return load_source(job).first(job["n_members"])


def load_source(source: Mapping[str, Any]) -> Members:
    """Load all members of a source: `checkpoints`, `model` and the other arguments of `load_members`, as JSON has them.

    Raises:
        EnsexportError: See `load_members`.
    """
    return load_members(
        source["checkpoints"],
        source["model"],
        model_args=source["model_args"],
        base_dir=source["base_dir"],
        selection=Selection(**source["selection"]),
        trust=Trust(**source["trust"]),
        allow_nonfinite=source["allow_nonfinite"],
        any_float=source.get("any_float", False),
    )


def job_device(job: Job) -> torch.device:
    """Where torch runs a job.

    Raises:
        ProviderError: There is no CUDA device.
    """
    if job["provider"] == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ProviderError("torch sees no CUDA device.", hint="Install a torch built for CUDA.")
    tf32 = job.get("tf32", False)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32  # like the sessions beside it
    return torch.device("cuda")
