"""Write a large table of real digits: each row one of scikit-learn's 8x8 images, a little noisier row by row."""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn.datasets import load_digits

ROWS_PER_FILE = 25_000


def write_file(path: Path, first_row: int, rows: int) -> None:
    """Write rows `first_row` and on; each file's noise has a seed of its own, so that files can be made anywhere."""
    digits = load_digits()
    random = np.random.default_rng(first_row)
    which = random.integers(0, len(digits.images), rows)
    noise = random.uniform(0, 0.6, rows).astype(np.float32)
    images = (digits.data[which] / 16).astype(np.float32)
    images = np.clip(images + noise[:, None] * random.standard_normal(images.shape, dtype=np.float32), 0, 1)
    table = pa.table({
        "row": np.arange(first_row, first_row + rows),
        "label": digits.target[which],
        "noise": noise,
        "image": pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), 64),
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=5_000)


def main(folder: Path, rows: int) -> None:
    """Write the files and say what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.parquet"):
        old.unlink()
    for number, first in enumerate(range(0, rows, ROWS_PER_FILE)):
        write_file(folder / f"part_{number:03d}.parquet", first, min(ROWS_PER_FILE, rows - first))
    files = list(folder.glob("*.parquet"))
    size = sum(path.stat().st_size for path in files)
    print(f"{rows:,} rows in {len(files)} files, {size / 1e6:.0f} MB, in {folder}/")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("table"), help="where the files go")
    parser.add_argument("--rows", type=int, default=400_000, help="how many rows")
    arguments = parser.parse_args()
    main(arguments.folder, arguments.rows)
