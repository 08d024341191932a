"""Descriptors of small organic molecules, shaken at random: half hydrogen, a third carbon, nitrogen and oxygen."""

import numpy as np
import torch
from torchani.aev import AEVComputer

ELEMENTS = "HCNO"
RING = [(np.cos(angle), np.sin(angle), 0.0) for angle in np.arange(6) * np.pi / 3]
TETRAHEDRON = [(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)]
# name -> (how many of them, atoms, positions in angstrom)
MOLECULES = {
    "benzene": (2, "CCCCCCHHHHHH", [*np.multiply(1.39, RING), *np.multiply(2.48, RING)]),
    "hydrogen cyanide": (4, "HCN", [(0, 0, -1.06), (0, 0, 0), (0, 0, 1.16)]),
    "formaldehyde": (4, "COHH", [(0, 0, 0), (0, 0, 1.21), (0, 0.94, -0.59), (0, -0.94, -0.59)]),
    "methane": (1, "CHHHH", [(0, 0, 0), *np.multiply(0.63, TETRAHEDRON)]),
    "ammonia": (1, "NHHH", [(0, 0, 0.12), (0, 0.94, -0.27), (0.81, -0.47, -0.27), (-0.81, -0.47, -0.27)]),
    "water": (1, "OHH", [(0, 0, 0.12), (0, 0.76, -0.47), (0, -0.76, -0.47)]),
}


def describe(n_atoms: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the descriptors `(atoms, 384)` of that many atoms, and each atom's place in `ELEMENTS`."""
    random = np.random.default_rng(seed)
    computer = AEVComputer.like_1x()
    atoms_a_set = sum(count * len(atoms) for count, atoms, _ in MOLECULES.values())
    descriptors, species = [], []
    for count, atoms, positions in MOLECULES.values():
        copies = count * -(-n_atoms // atoms_a_set)
        own = np.tile([ELEMENTS.index(atom) for atom in atoms], (copies, 1))
        shaken = np.asarray(positions) + random.normal(scale=0.05, size=(copies, len(atoms), 3))
        aev = computer(torch.from_numpy(own), torch.from_numpy(shaken.astype(np.float32)))
        descriptors.append(aev.flatten(0, 1).numpy())
        species.append(own.ravel())
    order = random.permutation(sum(map(len, species)))[:n_atoms]
    return np.concatenate(descriptors)[order], np.concatenate(species)[order]


def feed_of(aev: np.ndarray, species: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs of the packed file.

    A molecule may lack an element, but no input may be empty: ONNX Runtime 1.31 divides by zero, and ends the process,
    where a batch of matrices has no rows. Such an element gets a row of zeros behind the last atom; cut its energy off.
    """
    rows = {element.lower(): np.flatnonzero(species == number) for number, element in enumerate(ELEMENTS)}
    if all(map(len, rows.values())):
        return {"aev": aev, **rows}
    absent = np.array([len(aev)])
    return {"aev": np.pad(aev, ((0, 1), (0, 0))), **{key: own if len(own) else absent for key, own in rows.items()}}
