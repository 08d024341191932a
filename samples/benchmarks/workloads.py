"""The standard set: which networks are measured, on which inputs, and checkpoints for them.

The checkpoints are random, and the same in every run: how fast a network is does not depend on what it has learned.
Batch norms get statistics that are not those of a fresh network, so that folding them away changes the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import models
import torch
from safetensors.torch import save_file
from torch import nn

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Workload:
    """One network of the set.

    Attributes:
        name: How options and files call it.
        title: How the page calls it.
        factory: What builds it, in `models.py`.
        spec: Its input as one member sees it; `{}` stands for the dtype.
        batches: Batch sizes on the CPU.
        gpu_batches: Batch sizes on a GPU.
        per_member: Inputs with one slice a member.
        is_small: Cheap enough to be compared with every alternative there is.
        is_large: Hundreds of megabytes a few members: proven at batch 2 on one seed, ten members last.
    """

    name: str
    title: str
    factory: str
    spec: str
    batches: tuple[int, ...] = (1, 8, 64)
    gpu_batches: tuple[int, ...] = (1, 8, 32)
    per_member: tuple[str, ...] = ()
    is_small: bool = False
    is_large: bool = False

    @property
    def model(self) -> str:
        """What `load_members` and `bench` take."""
        return f"models.py:{self.factory}"

    def input_spec(self, dtype: str) -> str:
        """The input of members of this dtype."""
        return self.spec.format("float32" if dtype == "tf32" else dtype)

    def build(self) -> nn.Module:
        """One network with fresh random weights."""
        module: nn.Module = getattr(models, self.factory)()
        return module


_IMAGE = "x:{}[batch,3,224,224]"
_DIGIT = "x:{}[batch,1,28,28]"
_SMALL_GPU = (1, 8, 32, 64)
# In this order they are measured.
WORKLOADS = (
    Workload("mlp", "Tutorial MLP 784-128-128-10", "mlp", _DIGIT, (1, 8, 64, 256), _SMALL_GPU, is_small=True),
    Workload(
        "mlp-per-member", "The same MLP, one minibatch for each member", "mlp", _DIGIT, (1, 8, 64, 256), _SMALL_GPU,
        ("x",), is_small=True,
    ),
    Workload("lenet", "LeNet-class CNN, 32x32", "lenet", "x:{}[batch,3,32,32]", gpu_batches=_SMALL_GPU, is_small=True),
    Workload("lstm", "LSTM, two layers of 256, 64 steps", "Lstm", "x:{}[batch,64,32]"),
    Workload("resnet18-64", "ResNet-18, 64x64", "resnet18", "x:{}[batch,3,64,64]"),
    Workload("mobilenetv3", "MobileNetV3-small, 224x224", "mobilenetv3_small", _IMAGE),
    Workload("unet3d", "3-D U-Net, small, 32x32x32", "UNet3d", "x:{}[batch,1,32,32,32]"),
    Workload("vit-tiny", "ViT-tiny, 224x224", "vit_tiny", _IMAGE),
    Workload("resnet18-224", "ResNet-18, 224x224", "resnet18", _IMAGE),
    Workload("resnet50", "ResNet-50, 224x224", "resnet50", _IMAGE, is_large=True),
    Workload("bert-base", "BERT-base shape, S=128", "bert_base", "ids:int64[batch,128]", is_large=True),
    Workload("vit-base", "ViT-B, 224x224", "vit_base", _IMAGE, is_large=True),
)  # fmt: skip


def write_members(workload: Workload, folder: Path, n_members: int, dtype: str) -> list[Path]:
    """Write checkpoints that differ in their seed only; the first so many are always the same.

    Args:
        workload: Whose.
        folder: Where to.
        n_members: How many.
        dtype: Of the weights: there is no conversion while packing, so members of another dtype are converted here.
    """
    paths = []
    for seed in range(n_members):
        torch.manual_seed(seed)
        module = workload.build()
        _draw_statistics(module)
        state = {
            name: tensor.to(DTYPES[dtype]) if tensor.is_floating_point() else tensor
            for name, tensor in module.state_dict().items()
        }
        paths.append(folder / f"seed_{seed}.safetensors")
        save_file(state, paths[-1])
    return paths


def _draw_statistics(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.running_mean.normal_(0.0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
