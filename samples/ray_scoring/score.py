"""Score a table on disk with a packed file and Ray Data: blocks stream through processes that hold one session each."""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # ray reads these as it is imported
# without a cluster, Ray runs here, listens on 127.0.0.1 alone, and ends with this script
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "1" if "RAY_ADDRESS" in os.environ else "0")

import numpy as np
import onnxruntime as ort
import ray
import ray.data

STORE = 100 * 2**20  # bytes of shared memory for the blocks that are on their way
BLOCK = 16 * 2**20  # bytes of a block: several must fit there


class Score:
    """What a process of the pool does: make the session once, then call the file once a batch."""

    def __init__(self, model: bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1  # it has one CPU
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Put the ensemble's class and how far its members disagree beside what identifies a row."""
        x = np.stack(batch["image"]).astype(np.float32).reshape(-1, 8, 8)
        probs, disagreement = self.session.run(["output.probs", "output.mutual_information"], {"x": x})
        return {
            "row": batch["row"],
            "label": batch["label"],
            "digit": probs.argmax(axis=-1),
            "probability": probs.max(axis=-1),
            "mutual_information": disagreement,
            "probs": probs,
        }


def score(path: str, table: str, out: str, actors: int) -> None:
    """Read, score and write, block by block."""
    ray.data.DataContext.get_current().target_max_block_size = BLOCK
    rows = ray.data.read_parquet(table).select_columns(["row", "label", "image"])
    scored = rows.map_batches(
        Score,
        fn_constructor_args=(Path(path).read_bytes(),),  # so that no other machine needs the file
        batch_size=4096,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    scored.write_parquet(out, mode=ray.data.SaveMode.OVERWRITE)


def main(path: str, table: str, out: str, actors: int) -> None:
    """Join the cluster, or start a Ray of our own; score the table, and say how long it took."""
    here = {"num_cpus": actors + 1, "object_store_memory": STORE, "include_dashboard": False}
    ray.init(**({} if "RAY_ADDRESS" in os.environ else here))
    try:
        start = time.perf_counter()
        score(path, table, out, actors)
        print(f"scored in {time.perf_counter() - start:.0f} s by {actors} processes, into {out}")
    finally:
        ray.shutdown()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", nargs="?", default="ensemble.onnx", help="the ONNX file")
    parser.add_argument("--table", default="table", help="folder of parquet files")
    parser.add_argument("--out", default="scored", help="folder for the scored parquet files")
    parser.add_argument("--actors", type=int, default=2, help="processes that hold a session")
    arguments = parser.parse_args()
    main(arguments.path, arguments.table, arguments.out, arguments.actors)
