"""Compare the packed file with torchani's own networks on descriptors of molecules, then time it beside them."""

import argparse
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from alternatives import MAKERS
from convert import WHEEL
from molecules import MOLECULES, describe, feed_of

from ensexport.timing.exchange import write_feed
from ensexport.timing.measure import Worker, measure

HERE = Path(__file__).parent
TOLERANCE = 1e-5  # of the largest energy of an atom


class AniWorker(Worker):
    """A process that knows the alternatives of this sample too."""

    program = (str(HERE / "alternatives.py"),)


def compare(workers: list[Worker], feed: dict[str, np.ndarray]) -> None:
    """Stop unless all alternatives give the energies that torchani's loop gives."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feed.npz"
        write_feed(path, feed)
        outputs = {worker.name: worker.outputs(path) for worker in workers}
    expected = outputs["torchani loop"]["energies"]
    for kind, found in outputs.items():
        right = expected if "energies" in found else expected.mean(axis=0)
        error = np.abs(found.get("energies", found.get("mean")) - right).max() / np.abs(expected).max()
        print(f"  {kind:<32} differs from torchani's loop by {error:.1e} of the largest energy")
        if not error <= TOLERANCE:
            raise SystemExit(f"'{kind}' is not equal: {error:.1e} > {TOLERANCE:.0e}")


def main(path: Path, wheel: Path, sizes: list[int], blocks: int, one_core: bool) -> None:
    """Prove and time at several numbers of atoms."""
    if one_core:
        AniWorker.program = (*AniWorker.program, "--one-core")
    job = {"path": str(path), "wheel": str(wheel), "provider": "cpu"}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        workers: list[Worker] = []
        for name, maker in MAKERS.items():  # one after the other: each is stopped as soon as it is loaded
            own = {**job, "name": name, "maker": f"__main__:{maker.__name__}"}
            workers.append(stack.enter_context(AniWorker(own, Path(folder))))
            workers[-1].wait_ready()
        for n_atoms in sizes:
            aev, species = describe(n_atoms)
            feed = feed_of(aev, species)
            shares = ", ".join(f"{e.upper()} {len(feed[e]) / n_atoms:.0%}" for e in "hcno")
            print(f"{n_atoms} atoms of {len(MOLECULES)} kinds of molecules: {shares}")
            compare(workers, feed)
            print(f"  {'':<32} {'ms':>8}  times the file's (95 % interval)")
            for row in measure(workers, feed, blocks=blocks):
                interval = f"{row.ratio_low:.2f} to {row.ratio_high:.2f}"
                print(f"  {row.alternative:<32} {row.median_ms:8.2f}  {row.ratio:.2f} ({interval})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", type=Path, default="ani1x.onnx", help="the packed file")
    parser.add_argument("--wheel", type=Path, default=WHEEL, help="of torchani 2.2.4")
    parser.add_argument("--atoms", default="100,1000,10000", help="numbers of atoms")
    parser.add_argument("--blocks", type=int, default=30, help="rounds")
    parser.add_argument("--one-core", action="store_true", help="one thread each, and its processor time")
    options = parser.parse_args()
    atoms = [int(size) for size in options.atoms.split(",")]
    main(options.path, options.wheel, atoms, options.blocks, options.one_core)
