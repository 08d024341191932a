"""One member of ANI-1x: a network an element, each for the atoms of its element."""

from itertools import pairwise

import torch
from torch import nn

SIZES = {
    "H": (384, 160, 128, 96, 1),
    "C": (384, 144, 112, 96, 1),
    "N": (384, 128, 112, 96, 1),
    "O": (384, 128, 112, 96, 1),
}


class AtomicNetwork(nn.Sequential):
    """The network of one element: linear layers with CELU in between."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.CELU(alpha=0.1)]
        super().__init__(*layers[:-1])


class ANI1x(nn.Module):
    """Descriptors of atoms, and which atoms are of which element -> the energy of each atom, in Hartree."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({element: AtomicNetwork(sizes) for element, sizes in SIZES.items()})

    def forward(
        self, aev: torch.Tensor, h: torch.Tensor, c: torch.Tensor, n: torch.Tensor, o: torch.Tensor
    ) -> torch.Tensor:
        """Map descriptors `(atoms, 384)` and the row numbers of each element to energies `(atoms,)`.

        A row that no element names gets 0.
        """
        rows = (h, c, n, o)
        energies = [
            network(aev.index_select(0, own)).squeeze(1)
            for network, own in zip(self.networks.values(), rows, strict=True)
        ]
        return aev.new_zeros(aev.shape[0]).index_add(0, torch.cat(rows), torch.cat(energies))
