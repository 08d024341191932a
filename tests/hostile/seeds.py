"""Small honest files in each format, in memory, which the fuzzer damages and the table starts from."""

import argparse
import io
import pathlib

import numpy as np
import torch
from safetensors.torch import save


def weights():
    return {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.tensor([0.5, -1.0]), "n": torch.tensor(3)}


def trainer_state():
    """What trainers save beside the weights: every name of the allow-list is in it."""
    return {
        "state_dict": weights(),
        "args": argparse.Namespace(model="net", lr=0.1, out=pathlib.PurePosixPath("runs/a")),
        "best": np.float64(0.5),
        "history": np.arange(3.0),
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]},
        "empty": b"",
        "raw": bytearray(b"x"),
        "half": torch.ones(2).to(torch.float8_e4m3fn),
    }


def torch_bytes(content, *, legacy=False, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy, **options)
    return buffer.getvalue()


def safetensors_bytes(tensors=None, **options):
    return save({name: tensor.contiguous() for name, tensor in (tensors or weights()).items()}, **options)
