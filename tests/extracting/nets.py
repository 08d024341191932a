"""Ensembles of small networks on disk, packed, and their members taken out and run without ensexport."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import nn

import ensexport
from ensexport.batching.examples import random_feed
from ensexport.dtypes import DtypeChoice
from ensexport.emission import parse_emission
from ensexport.spec import parse_inputs
from ensexport.stacking.outputs import flatten_outputs
from tests.models import attention, control, sequences, vision


class Residual(nn.Module):
    """Convolutions and batch norms around a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.body(x)).mean((2, 3)))


class Bag(nn.Module):
    """An embedding, one of whose tensors no op reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 3)
        self.register_buffer("unread", torch.arange(4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def transformer() -> nn.Module:
    return nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True), 2, enable_nested_tensor=False
    )


@dataclass(frozen=True)
class Case:
    """One architecture and how it is packed.

    Attributes:
        build: Returns a member.
        inputs: As on the command line.
        n_members: N.
        shared: Names of tensors that are the same in all members.
        options: Of `export`.
        members: Those that are taken out; None for all.
        sizes: Where they are run, beside batch 1, 2 and 7: sizes of other dims.
        rtol: How far they may be from torch, as a share of the largest value.
    """

    build: Callable[[], nn.Module]
    inputs: list[str]
    n_members: int = 3
    shared: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    members: tuple[int, ...] = (1,)
    sizes: Mapping[str, int] = field(default_factory=dict)
    rtol: float = 1e-5


X, IMAGE = ["x:float32[batch,4]"], ["x:float32[batch,3,8,8]"]
TOKENS = ["src:float32[batch,t,8]"]
SEQ2SEQ = ["src:int64[batch,s]", "tgt:int64[batch,t]", "src_pad:bool[batch,s]"]
STATE = ["x:float32[batch,t,6]", "h:float32[batch,5]", "c:float32[batch,5]"]

CASES = {
    "MLP": Case(mlp, X, members=(0, 1, 2)),
    "one member": Case(mlp, X, n_members=1, members=(0,)),
    "two members": Case(mlp, X, n_members=2, members=(0, 1)),
    "five members": Case(mlp, X, n_members=5, members=(0, 4)),
    "residual block": Case(Residual, IMAGE, members=(0, 1, 2)),
    "one residual block": Case(Residual, IMAGE, n_members=1, members=(0,)),
    "unrolled": Case(Residual, IMAGE, options={"strategy": "unrolled"}),
    "apart on a CPU": Case(Residual, IMAGE, options={"target": "cpu"}),
    "merged for a GPU": Case(transformer, TOKENS, sizes={"t": 5}, options={"target": "cuda", "provider": "cpu"}),
    "transformer": Case(transformer, TOKENS, sizes={"t": 5}),
    "member axis 1": Case(Residual, IMAGE, options={"member_axis": 1}),
    "combined": Case(Residual, IMAGE, options={"emission": parse_emission("probs,entropy")}),
    "float16": Case(Residual, IMAGE, options={"dtypes": DtypeChoice("float16")}, rtol=4e-3),
    "bfloat16 inside": Case(mlp, X, options={"dtypes": DtypeChoice("bfloat16", "float32")}, rtol=4e-2),
    "embedding": Case(Bag, ["ids:int64[batch,t]"], sizes={"t": 3}),
    "shared backbone": Case(mlp, X, shared=("0.weight", "0.bias")),
    "tied": Case(attention.TiedLM, ["ids:int64[batch,t]"], sizes={"t": 4}),
    "LSTM with its state, one a member": Case(
        sequences.LSTMState, STATE, sizes={"t": 4}, options={"per_member": ("h", "c")}),
    "encoder and decoder": Case(attention.Seq2Seq, SEQ2SEQ, sizes={"s": 6, "t": 5}),
    "U-Net": Case(vision.UNetPad, ["x:float32[batch,3,h,w]"], sizes={"h": 9, "w": 13}),
    "two outputs": Case(control.ActorCritic, ["obs:float32[batch,6]"]),
}  # fmt: skip


def make_members(case: Case) -> list[nn.Module]:
    """Members whose tensors all differ, buffers too, but for the shared ones."""
    members = []
    for seed in range(case.n_members):
        torch.manual_seed(seed)
        member = case.build().eval()
        for name, buffer in member.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.uniform_(0.5, 2)
            if name.endswith("num_batches_tracked"):
                buffer.fill_(100 + seed)
        for name, tensor in member.named_parameters():
            if name in case.shared:
                tensor.data = members[0].get_parameter(name).data.clone() if members else tensor.data
        members.append(member)
    return members


def pack(case: Case, folder: Path) -> tuple[Path, list[nn.Module]]:
    """Write checkpoints and the packed file."""
    members = make_members(case)
    (folder / "ckpts").mkdir()
    for index, member in enumerate(members):
        torch.save(member.state_dict(), folder / "ckpts" / f"m{index}.pt")
    loaded = ensexport.load_members(folder / "ckpts", model=case.build)
    path = folder / "e.onnx"
    ensexport.export(loaded, path, inputs=case.inputs, batches=(2,), seeds=(0,), **case.options)
    return path, members


def assert_equals_member(path: Path, member: nn.Module, case: Case) -> None:
    """Run an extracted file at several batch sizes and compare with the member in torch."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    specs = parse_inputs(case.inputs)
    for batch in (1, 2, 7):
        feed = random_feed(specs, {"batch": batch, **case.sizes}, seed=batch)
        with torch.no_grad():
            expected = flatten_outputs(member(*feed.values()))
        dtypes = {value.name: value.type for value in session.get_inputs()}
        arrays = {
            name: (tensor.half() if "float16" in dtypes[name] else tensor).numpy() for name, tensor in feed.items()
        }
        results = session.run(None, arrays)
        assert len(results) == len(expected) == len(names)
        for result, (name, wanted) in zip(results, expected.items(), strict=True):
            assert result.shape == tuple(wanted.shape), name
            scale = float(wanted.abs().max()) or 1.0
            error = float((torch.from_numpy(result).double() - wanted.double()).abs().max())
            assert error <= case.rtol * scale, (name, batch, error, scale)
