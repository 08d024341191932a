import pytest
import torch

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.deepspeed import refuse_partitioned


def states(module, **more):
    return {"module": module, "ds_version": "0.17.1", "ds_config": {}, "param_shapes": None, **more}


SHAPES = [{"w": torch.Size([2, 3])}, {"b": torch.Size([3])}]


@pytest.mark.parametrize(
    "content",
    [
        states({"w": torch.ones(2, 3), "b": torch.ones(3)}),
        states({"w": torch.ones(2, 3), "b": torch.ones(3)}, param_shapes=SHAPES),
        states({"w": torch.ones(2, 3), "unused": torch.empty(0)}, param_shapes=SHAPES),
        states({}),
        {"module": {"w": torch.empty(0)}},
        {"w": torch.ones(1)},
        [torch.ones(1)],
    ],
    ids=["whole", "with shapes", "an empty buffer", "empty", "not deepspeed's", "a state dict", "a list"],
)
def test_whole_weights_are_let_through(content):
    refuse_partitioned(content, "m.pt")


@pytest.mark.parametrize(
    ("content", "empty"),
    [
        (states({"w": torch.empty(0), "b": torch.empty(0)}), "'w', 'b'"),
        (states({"w": torch.empty(0), "b": torch.empty(0), "mean": torch.ones(2)}, param_shapes=SHAPES), "'w', 'b'"),
        (states({"w": torch.empty(0)}, param_shapes=SHAPES[0]), "'w'"),
    ],
    ids=["all empty", "buffers are whole", "one group"],
)
def test_weights_that_zero3_split_are_refused(content, empty):
    with pytest.raises(
        IncompleteCheckpointError, match=rf"'m\.pt' holds no whole weights: {empty} are empty"
    ) as caught:
        refuse_partitioned(content, "m.pt")
    assert "python zero_to_fp32.py . pytorch_model.bin" in caught.value.hint


def test_a_pipelines_states_are_refused():
    with pytest.raises(CheckpointError, match=r"'m\.pt' holds no weights: .* under 'module', got NoneType"):
        refuse_partitioned(states(None), "m.pt")
