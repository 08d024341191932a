"""The networks that are packed at size, and how the command line is told of them. Loads no torch until one is built."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Network:
    """One architecture.

    Attributes:
        name: How rows and scripts call it.
        title: How the page calls it.
        source: The file that defines it, from this folder.
        factory: What builds it there.
        shape: Its input, less the batch.
        arguments: What the factory takes.
    """

    name: str
    title: str
    source: str
    factory: str
    shape: tuple[int, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> list[str]:
        """What `ensexport pack`, called in this folder, has to be told of it."""
        dims = ",".join(map(str, ("batch", *self.shape)))
        arguments = ["--model-args", json.dumps(self.arguments)] if self.arguments else []
        return ["--model", f"{self.source}:{self.factory}", *arguments, "--input", f"x:float32[{dims}]"]

    def build(self) -> nn.Module:
        """One network with random weights."""
        spec = importlib.util.spec_from_file_location(f"scale_{self.factory}", HERE / self.source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        built: nn.Module = getattr(module, self.factory)(**self.arguments)
        return built


_IMAGE = (3, 224, 224)
_ALL = (
    Network("resnet50", "ResNet-50, 224x224", "../benchmarks/models.py", "resnet50", _IMAGE),
    Network("mlp", "MLP 24-296-296-20", "models.py", "dynamics", (24,)),
    Network("vit", "ViT-B, 224x224", "../benchmarks/models.py", "vit_base", _IMAGE),
    Network("tiny", "MLP 24-16-16-20", "models.py", "dynamics", (24,), {"width": 16}),
)
NETWORKS = {network.name: network for network in _ALL}
