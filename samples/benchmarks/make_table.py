"""Turn what `calibrate.py` measured into the table that the rules read.

    python make_table.py calibration_cpu.json [MORE.json] -o ../../ensexport/batching/tables/cpu.json

Of each layer only the form that the packer writes is kept: the grouped convolution, the batched product, the wide
product of a shared input. Rows with three layers in a row count before those with one.
"""

import argparse
import json
from pathlib import Path
from typing import Any

FORMS = {"conv": "grouped", "linear": "batched", "linear_shared": "wide"}


def entry(row: dict[str, Any], apart_us: float) -> dict[str, Any]:
    """One row of the table, in the words of `ensexport/batching/costs.py`."""
    layers = row.get("layers", 1)
    common = {"n_members": row["n_members"], "ratio": row["ratio_to_unrolled"], "apart_us": round(apart_us / layers, 2)}
    if row["op"] == "conv":
        inputs, outputs, kernel = row["in_channels"], row["out_channels"], row["kernel"]
        groups, rows, batch = row["groups_per_member"], row["pixels"], row["batch"]
        kind = "depthwise" if groups > 1 else "pointwise" if kernel == 1 else "conv"
        kind += "-odd" if inputs % 8 or outputs % 8 else ""
        flops = 2.0 * batch * rows * outputs * kernel**2 * inputs / groups
    else:
        inputs, outputs, rows, batch = row["in_features"], row["out_features"], row["rows"], 1
        kind = "linear" if row["op"] == "linear" else "wide"
        flops = 2.0 * rows * inputs * outputs
    shape = {"kind": kind, "inputs": inputs, "outputs": outputs, "rows": rows, "batch": batch}
    return {**shape, "flops": flops, **common}


def table(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of the table, sorted."""
    keys = ("op", "in_channels", "out_channels", "kernel", "groups_per_member", "pixels", "batch", "rows",
            "in_features", "out_features", "n_members", "dtype", "layers", "cuda_graph")  # fmt: skip
    chosen: dict[tuple[Any, ...], tuple[int, dict[str, Any]]] = {}
    apart = {
        tuple(row.get(k) for k in keys): row["us"] for row in measured if row["form"] == "unrolled" and "us" in row
    }
    for row in measured:
        key = tuple(row.get(name) for name in keys)
        if FORMS.get(row["op"]) != row["form"] or "us" not in row or row["cuda_graph"] or row["dtype"] != "float32":
            continue
        made = entry(row, apart[key])
        place = tuple(made[name] for name in ("kind", "inputs", "outputs", "rows", "batch", "n_members"))
        if place not in chosen or chosen[place][0] <= row.get("layers", 1):
            chosen[place] = (row.get("layers", 1), made)
    return [made for _, (_, made) in sorted(chosen.items(), key=lambda item: str(item[0]))]


def main() -> None:
    """Read, choose, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    found = [json.loads(path.read_text()) for path in options.measured]
    rows = table([row for report in found for row in report["rows"]])
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    environment = json.dumps(found[0]["environment"])
    options.output.write_text(f'{{"environment": {environment},\n "rows": [\n  {lines}\n ]}}\n')
    print(f"{options.output}: {len(rows)} layers")


if __name__ == "__main__":
    main()
