"""Examples are large enough that no size further on is 1 because of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ensexport.batching.chance import Shapes, is_one_by_chance
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


class SoundAndText(nn.Module):
    """Sound of at least 400 samples and a text of at most 40 places."""

    def __init__(self) -> None:
        super().__init__()
        self.window, self.words, self.places = nn.Conv1d(1, 4, 400, 160), nn.Embedding(10, 4), nn.Embedding(40, 4)

    def forward(self, wav: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        text = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        return text.mean(1) + self.window(wav[:, None]).mean(-1)


def test_dims_may_need_sizes_of_their_own() -> None:
    specs = parse_inputs(["wav:float32[batch,samples]", "ids:int64[batch,words]"])
    example = find_example(SoundAndText().eval(), specs)
    assert (example.sizes["samples"], example.sizes["words"]) == (1024, 32)  # two frames


def test_other_kernels_at_a_size_of_one_leave_the_modules_to_compare() -> None:
    """`nn.MultiheadAttention` runs other ops where there is one token."""

    class Net(Patches):
        def __init__(self) -> None:
            super().__init__()
            self.cut = nn.Conv2d(3, 4, 32, 32)
            self.attend = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attend(self.norm(self.cut(x).flatten(2).transpose(1, 2))).mean(1)

    sizes = find_example(Net().eval(), parse_inputs(["x:float32[batch,3,height,width]"])).sizes
    assert (sizes["height"], sizes["width"]) == (64, 64)


def test_what_stays_one_is_no_reason() -> None:
    pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1))
    example = find_example(pooled.eval(), parse_inputs(["x:float32[batch,3,height,width]"]))
    assert example.sizes["height"] == 16
    one, four = torch.Size([2, 1]), torch.Size([2, 4])
    assert is_one_by_chance(Shapes([one]), Shapes([four]))
    assert is_one_by_chance(Shapes([one], [one]), Shapes([one, four], [four]))
    assert not is_one_by_chance(Shapes([one], [four]), Shapes([one], [one]))
    assert not is_one_by_chance(Shapes([one], [one]), Shapes([one, four], [one, four]))
