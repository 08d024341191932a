"""Mean and standard deviation over the members, from the packed file: energies, and how sure they are."""

import argparse

import numpy as np
import onnxruntime as ort
import torch
from molecules import ELEMENTS, MOLECULES, feed_of
from torchani.aev import AEVComputer


def main(path: str) -> None:
    """Print what the networks say of each molecule as it was drawn."""
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    computer = AEVComputer.like_1x()
    print("energy of the networks in Hartree (without the energies of the single atoms): mean and std of 8 members")
    for name, (_, atoms, positions) in MOLECULES.items():
        species = np.array([ELEMENTS.index(atom) for atom in atoms])
        places = torch.tensor(np.asarray(positions), dtype=torch.float32)
        aev = computer(torch.from_numpy(species)[None], places[None])[0].numpy()
        (energies,) = session.run(None, feed_of(aev, species))  # (members, atoms)
        molecule = energies[:, : len(atoms)].sum(axis=1, dtype=np.float64)
        print(f"  {name:<17} {molecule.mean():9.5f} +- {molecule.std():.5f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="ani1x.onnx", help="the packed file")
    main(parser.parse_args().path)
