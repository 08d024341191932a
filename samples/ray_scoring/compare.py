"""Show the scored table, and compare every row of it with the file called here, one file of the table at a time."""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

SHOWN = ("row", "label", "digit", "probability", "mutual_information")
BOUND = 1e-5  # batches are cut elsewhere; sums may round otherwise


def column(table: pa.Table, name: str) -> np.ndarray:
    """A column as `(rows,)`, or `(rows, values)` where it holds lists."""
    array = table[name].combine_chunks()
    if pa.types.is_nested(array.type):
        return array.flatten().to_numpy().reshape(len(array), -1)
    return array.to_numpy()


def show_head(scored: ds.Dataset) -> None:
    """Print the first rows."""
    head = scored.to_table(columns=[*SHOWN], filter=ds.field("row") < 5).sort_by("row").to_pydict()
    print("  ".join(SHOWN))
    for values in zip(*head.values(), strict=True):
        print("  ".join(f"{round(v, 4):>{len(name)}}" for name, v in zip(head, values, strict=True)))


def show_accuracy(scored: ds.Dataset) -> None:
    """Print what the uncertainty is good for: the rows it points to are the ones that are wrong."""
    table = scored.to_table(columns=["label", "digit", "mutual_information"])
    right = column(table, "label") == column(table, "digit")
    unsure = column(table, "mutual_information")
    limit = np.quantile(unsure, 0.9)
    print(f"accuracy of all rows {right.mean():.2%}; of the tenth with most mutual information", end=" ")
    print(f"{right[unsure > limit].mean():.2%}, of the others {right[unsure <= limit].mean():.2%}")


def compare(path: str, table: Path, scored: ds.Dataset) -> None:
    """Call the file for all rows, in the memory of one file of the table.

    Raises:
        SystemExit: Rows are missing or there twice, or a value is not the file's own.
    """
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = differing = 0
    worst = 0.0
    for part in sorted(table.glob("*.parquet")):
        given = pq.read_table(part, columns=["row", "image"])
        first, last = (int(value) for value in column(given, "row")[[0, -1]])
        found = scored.to_table(filter=(ds.field("row") >= first) & (ds.field("row") <= last)).sort_by("row")
        if not found["row"].combine_chunks().equals(given["row"].combine_chunks()):
            raise SystemExit(f"the scored table has not just the rows {first} to {last} of {part}")
        x = column(given, "image").reshape(-1, 8, 8)
        probs, disagreement = session.run(["output.probs", "output.mutual_information"], {"x": x})
        for name, value in (("probs", probs), ("mutual_information", disagreement)):
            worst = np.maximum(worst, np.abs(column(found, name) - value).max())  # keeps a NaN
        differing += int((column(found, "digit") != probs.argmax(axis=-1)).sum())
        rows += len(x)
    found_rows = scored.count_rows()
    if found_rows != rows or differing or not worst <= BOUND:
        said = f"largest difference {worst:.1e}, allowed {BOUND}, {differing} other digits"
        raise SystemExit(f"{found_rows} rows for {rows}, {said}")
    print(f"{rows:,} rows equal {path} called directly: largest difference {worst:.1e}, {differing} other digits")


def main(path: str, table: Path, out: Path) -> None:
    """Print head, accuracy and comparison."""
    scored = ds.dataset(out, format="parquet")
    show_head(scored)
    show_accuracy(scored)
    compare(path, table, scored)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="ensemble.onnx", help="the ONNX file")
    parser.add_argument("--table", type=Path, default=Path("table"), help="folder of parquet files")
    parser.add_argument("--out", type=Path, default=Path("scored"), help="folder of the scored parquet files")
    arguments = parser.parse_args()
    main(arguments.path, arguments.table, arguments.out)
