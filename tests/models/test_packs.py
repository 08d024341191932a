"""Networks as people write them: packed, and run without ensexport at sizes that the proof did not see."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import nn

import ensexport
from ensexport.stacking.outputs import flatten_outputs
from tests.models import attention, control, habits, sequences, sets, tabular, vision

B = ({"batch": 1}, {"batch": 5}, {"batch": 17})
BT = ({"batch": 1, "t": 16}, {"batch": 4, "t": 9}, {"batch": 11, "t": 33})
HW = ({"batch": 1, "h": 16, "w": 32}, {"batch": 2, "h": 9, "w": 13})


@dataclass(frozen=True)
class Case:
    """One architecture.

    Attributes:
        build: Its class.
        inputs: As on the command line.
        sizes: Where the files are run.
        tops: Integer input -> how many values it may have.
        per_member: Names of the inputs with a slice a member.
        args: Arguments of the class.
    """

    build: Callable[..., nn.Module]
    inputs: list[str]
    sizes: tuple[dict[str, int], ...] = B
    tops: dict[str, int] = field(default_factory=dict)
    per_member: tuple[str, ...] = ()
    args: dict[str, object] = field(default_factory=dict)


QUICK = {
    "text LSTM, per-member": Case(sequences.TextLSTM, ["tokens:int64[batch,t]"], BT, {"tokens": 200}, ("tokens",)),
    "causal convolutions": Case(sequences.TCN, ["x:float32[batch,3,t]"], BT),
    "attention pooling": Case(attention.AttPool, ["bag:float32[batch,t,6]"], BT),
    "convnet": Case(vision.LeNet, ["x:float32[batch,1,28,28]"]),
    "U-Net 2-D, any size": Case(vision.UNet2D, ["image:float32[batch,3,h,w]"], HW),
    "U-Net that pads": Case(vision.UNetPad, ["x:float32[batch,3,h,w]"], HW),
    "parametrizations": Case(vision.Spectral, ["x:float32[batch,6]"]),
    "autoencoder": Case(vision.VAE, ["x:float32[batch,10]"]),
    "DLRM": Case(tabular.DLRM, ["dense:float32[batch,5]", "sparse:int64[batch,3]"], tops={"sparse": 10}),
    "two towers, a keyword-only input": Case(
        tabular.TwoTower, ["user:int64[batch]", "item:int64[batch]", "item_features:float32[batch,3]"],
        tops={"user": 1000, "item": 500}),
    "wide and deep": Case(tabular.WideDeep, ["cat:int64[batch,3]", "num:float32[batch,4]"], tops={"cat": 7}),
    "experts": Case(sets.MoE, ["x:float32[batch,6]"]),
    "actor and critic": Case(control.ActorCritic, ["obs:float32[batch,6]"]),
    "Gaussian policy": Case(control.SAC, ["obs:float32[batch,6]"]),
    "nested outputs": Case(control.Nested, ["x:float32[batch,4]"]),
    "odd outputs": Case(control.Weird, ["x:float32[batch,4]"]),
    "writes by index": Case(habits.IndexAssign, ["x:float32[batch,4]", "keep:bool[batch]"]),
}  # fmt: skip
SLOW = {
    "bidirectional LSTM": Case(sequences.BiLSTM, ["x:float32[batch,t,6]"], BT),
    "LSTM with its state as inputs": Case(
        sequences.LSTMState, ["x:float32[batch,t,6]", "h:float32[batch,5]", "c:float32[batch,5]"], BT,
        per_member=("h", "c")),
    "graph convolution": Case(sets.GAT, ["x:float32[batch,t,4]", "adj:int64[t,t]"], BT),
    "points": Case(sets.PointNet, ["x:float32[batch,3,t]"], BT),
    "bidirectional GRU, time first": Case(sequences.BiGRU, ["x:float32[t,batch,6]"], BT),
    "cells in a loop": Case(sequences.LSTMCellLoop, ["x:float32[batch,4,6]"]),
    "learned initial state": Case(sequences.LearnedH0, ["x:float32[batch,t,6]"], BT),
    "WaveNet": Case(sequences.WaveNet, ["x:float32[batch,1,t]"], BT),
    "scan by cumsum": Case(sequences.Mamba, ["x:float32[batch,t,4]"], BT),
    "attention with padding": Case(attention.MHA, ["x:float32[batch,t,6]", "mask:bool[batch,t]"], BT),
    "encoder with padding": Case(
        attention.Encoder, ["ids:int64[batch,t]", "pad:bool[batch,t]"],
        ({"batch": 1, "t": 64}, {"batch": 5, "t": 7}), {"ids": 50}),
    "encoder, time first": Case(attention.EncoderPlain, ["x:float32[t,batch,8]"], BT),
    "encoder and decoder": Case(
        attention.Seq2Seq, ["src:int64[batch,s]", "tgt:int64[batch,t]", "src_pad:bool[batch,s]"],
        ({"batch": 2, "s": 11, "t": 5}, {"batch": 7, "s": 4, "t": 19}), {"src": 40, "tgt": 30}),
    "decoder with a causal mask and padding": Case(
        attention.Decoder, ["memory:float32[batch,s,8]", "tgt:int64[batch,t]", "tgt_pad:bool[batch,t]"],
        ({"batch": 2, "s": 11, "t": 5}, {"batch": 7, "s": 4, "t": 19}), {"tgt": 30}),
    "the tutorial's language model": Case(
        attention.TutorialLM, ["src:int64[t,batch]"], ({"batch": 2, "t": 64}, {"batch": 7, "t": 3}), {"src": 40}),
    "rotary, grouped queries": Case(
        attention.Llama, ["ids:int64[batch,t]", "attention_mask:int64[batch,t]"], BT, {"ids": 100}),
    "U-Net 3-D, any size": Case(
        vision.UNet3D, ["x:float32[batch,1,d,h,w]"],
        ({"batch": 1, "d": 16, "h": 16, "w": 16}, {"batch": 2, "d": 8, "h": 12, "w": 20})),
    "vision transformer": Case(vision.ViT, ["x:float32[batch,3,16,16]"]),
    "norms": Case(vision.GroupNet, ["x:float32[batch,3,8,8]"]),
    "spatial transformer": Case(vision.STN, ["x:float32[batch,1,8,8]"]),
    "bags with offsets": Case(
        tabular.BagOffsets, ["text:int64[n]", "offsets:int64[batch]"], ({"n": 20, "batch": 3}, {"n": 7, "batch": 7}),
        {"text": 100}),
    "feature tokens, len() of a batch": Case(
        tabular.FTT, ["x_num:float32[batch,5]", "x_cat:int64[batch,2]"], tops={"x_cat": 3}),
    "sparsemax": Case(tabular.TabNet, ["x:float32[batch,6]"]),
    "splines": Case(sets.KAN, ["x:float32[batch,5]"]),
    "experts in one tensor": Case(sets.MoEParam, ["x:float32[batch,6]"]),
    "sets": Case(sets.DeepSets, ["x:float32[batch,t,3]", "mask:bool[batch,t]"], BT),
    "Q network": Case(control.DQN, ["obs:float32[batch,6]"]),
    "habits": Case(habits.Habits, ["x:float32[batch,6]"]),
    "functions": Case(habits.Functional, ["x:float32[batch,4]"], (*B, {"batch": 40})),
    "time steps": Case(habits.Fourier, ["x:float32[batch,3]", "t:int64[batch]"], tops={"t": 1000}),
    "spectrum": Case(habits.FFTNet, ["x:float32[batch,8]"]),
    "products": Case(habits.MutMul, ["x:float32[batch,6]"]),
}  # fmt: skip


def members_of(case: Case, n_members: int = 2) -> list[nn.Module]:
    made = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older weight_norm; time first in an encoder
            net = case.build(**case.args).eval().requires_grad_(False)
        for name, buffer in net.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
        made.append(net)
    return made


def feed_of(case: Case, sizes: dict[str, int], n_members: int) -> dict[str, torch.Tensor]:
    feed = {}
    for text in case.inputs:
        spec = ensexport.TensorSpec.parse(text)
        shape = (n_members, *spec.shape(sizes)) if spec.name in case.per_member else spec.shape(sizes)
        if spec.dtype.startswith("float"):
            feed[spec.name] = torch.randn(shape, dtype=getattr(torch, spec.dtype))
        elif spec.name == "offsets":
            feed[spec.name] = torch.arange(shape[0]) * (sizes["n"] // shape[0])
        else:
            drawn = torch.randint(0, case.tops.get(spec.name, 2), shape)
            if spec.dtype == "bool" and len(shape) > 1:
                drawn[..., 0] = 0 if "pad" in spec.name or spec.name == "mask" else 1
            feed[spec.name] = drawn.to(getattr(torch, spec.dtype))
    return feed


def loop(case: Case, members: list[nn.Module], feed: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    rows = []
    for index, net in enumerate(members):
        own = {name: (t[index] if name in case.per_member else t).clone() for name, t in feed.items()}
        with torch.no_grad():
            rows.append(list(flatten_outputs(net(**own)).values()))
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def assert_alike(expected: list[torch.Tensor], actual: list[torch.Tensor]) -> None:
    assert len(expected) == len(actual)
    for left, right in zip(expected, actual, strict=True):
        assert left.shape == right.shape
        assert left.dtype == right.dtype
        if left.is_floating_point():
            scale = left[torch.isfinite(left)].abs().max()
            torch.testing.assert_close(right, left, rtol=0, atol=float(scale) * 1e-4, equal_nan=True)
        else:
            assert torch.equal(left, right)


def script_of(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that TorchScript has a successor
        return torch.jit.load(folder / "e.ts")


def run_files(folder, feed):
    session = ort.InferenceSession(folder / "e.onnx", providers=["CPUExecutionProvider"])
    by_onnx = [torch.from_numpy(np.asarray(y)) for y in session.run(None, {k: t.numpy() for k, t in feed.items()})]
    script = script_of(folder)
    with torch.no_grad():
        by_script = script(*feed.values())
    return by_onnx, [by_script] if isinstance(by_script, torch.Tensor) else list(by_script)


def check(case: Case, folder) -> ensexport.ExportReport:
    members = members_of(case)
    report = ensexport.export(
        ensexport.stack(members),
        [folder / "e.onnx", folder / "e.ts"],
        inputs=case.inputs,
        per_member=case.per_member,
        batches=(1, 3),
        seeds=(0,),
    )
    assert all(dims == (1, None) for name, dims in report.dims.items() if name == "batch")
    for sizes in case.sizes:
        feed = feed_of(case, sizes, len(members))
        expected = loop(case, members, feed)
        for actual in run_files(folder, feed):
            assert_alike(expected, actual)
    return report


@pytest.mark.parametrize("case", QUICK.values(), ids=QUICK)
def test_packs_and_equals_the_loop(case, tmp_path):
    check(case, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW.values(), ids=SLOW)
def test_packs_and_equals_the_loop_too(case, tmp_path):
    check(case, tmp_path)


def test_a_position_table_bounds_its_dim(tmp_path):
    sizes = ({"batch": 2, "t": 64}, {"batch": 5, "t": 3})
    report = check(Case(attention.TiedLM, ["idx:int64[batch,t]"], sizes, {"idx": 60}), tmp_path)
    assert report.dims["t"] == (1, 64)


def test_a_backbone_that_is_equal_in_all_members_is_stored_once(tmp_path):
    case = Case(vision.Frozen, ["x:float32[batch,3,12,12]"])
    members = members_of(case, 4)
    for net in members[1:]:
        net.backbone.load_state_dict(members[0].backbone.state_dict())
    ensexport.export(ensexport.stack(members), [tmp_path / "e.onnx", tmp_path / "e.ts"], inputs=case.inputs)
    held = script_of(tmp_path).state_dict()
    shapes = sorted(tuple(t.shape) for t in held.values() if t.dim() == 4)
    assert shapes == [(6, 3, 3, 3)]  # the filters of one member, without an axis for four
    feed = feed_of(case, {"batch": 5}, 4)
    for actual in run_files(tmp_path, feed):
        assert_alike(loop(case, members, feed), actual)


@pytest.mark.parametrize("n_members", [1, pytest.param(64, marks=pytest.mark.slow)])
def test_one_member_and_many(n_members, tmp_path):
    case = Case(control.DQN, ["obs:float32[batch,6]"])
    members = members_of(case, n_members)
    files = [tmp_path / "e.onnx", tmp_path / "e.ts"]
    ensexport.export(ensexport.stack(members), files, inputs=case.inputs, batches=(1, 3), seeds=(0,))
    feed = feed_of(case, {"batch": 9}, n_members)
    for actual in run_files(tmp_path, feed):
        assert_alike(loop(case, members, feed), actual)


class Squeezes(nn.Module):
    """A regression head as it is often written: one number a row, and a scalar at batch 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).squeeze()


def test_batch_of_one_that_the_members_squeeze_away_is_kept_and_said(tmp_path: Path) -> None:
    paths = [tmp_path / "e.onnx", tmp_path / "e.ts"]
    members = [Squeezes().eval() for _ in range(3)]
    report = ensexport.export(ensexport.stack(members), paths, inputs=["x:float32[batch,4]"])
    assert report.validation.passed
    assert "squeeze() without a dim" in report.warnings[0]
    (result,) = ort.InferenceSession(paths[0]).run(None, {"x": torch.ones(1, 4).numpy()})
    assert result.shape == (3, 1)
