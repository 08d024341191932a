"""Examples are large enough that no size further on is 1 because of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ensexport.batching.chance import is_one_by_chance
from ensexport.batching.examples import find_example
from ensexport.spec import parse_inputs
from tests.batching.runs import assert_equals_loop, batched, capture, fx_run


class Patches(nn.Module):
    """Patches of an image as tokens: one patch at the smallest size."""

    def __init__(self) -> None:
        super().__init__()
        self.cut, self.norm = nn.Conv2d(3, 4, 16, 16), nn.LayerNorm(4)
        self.attend = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.cut(x).flatten(2).transpose(1, 2))
        return self.attend(y, y, y)[0].mean(1)


class Frames(nn.Module):
    """A window of 400 samples every 160."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.norm = nn.Conv1d(1, 4, 400, 160), nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.window(x[:, None]).transpose(1, 2)).softmax(1)


@pytest.mark.parametrize(
    ("build", "spec", "sizes"),
    [
        (Patches, "x:float32[batch,3,height,width]", {"batch": 3, "height": 32, "width": 32}),
        (Frames, "x:float32[batch,samples]", {"batch": 3, "samples": 1024}),
    ],
)
def test_sizes_are_doubled_until_nothing_is_one(build: type[nn.Module], spec: str, sizes: dict[str, int]) -> None:
    members = [build().eval() for _ in range(2)]
    example = find_example(members[0], parse_inputs([spec]))
    assert dict(example.sizes) == sizes
    graph, weights = batched(members, spec)
    _, example = capture(members[0], spec)
    assert_equals_loop([fx_run(graph, weights)], members, graph, example)


def test_what_stays_one_is_no_reason() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    example = find_example(pooled.eval(), parse_inputs(["x:float32[batch,3,height,width]"]))
    assert example.sizes["height"] == 16
    sizes = torch.Size([2, 1]), torch.Size([2, 4])
    assert is_one_by_chance(sizes[:1], sizes[1:])
    assert not is_one_by_chance(sizes, sizes[:1])
