"""What is measured beside the packed file; `measure.py` runs this file as a process for each."""

import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from convert import NETWORKS
from torchani.neurochem import load_ensemble
from torchani.nn import Ensemble

from ensexport.timing import worker

ONE_CORE = "--one-core" in sys.argv
Feed = Mapping[str, np.ndarray]
Run = Callable[[Feed], dict[str, np.ndarray]]
BLOCK = 1000


def published(wheel: str) -> Ensemble:
    """The eight networks as torchani itself reads them."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if "/ani-1x_8x/" in name])
        return load_ensemble("HCNO", Path(folder, NETWORKS.format(member="")).parent, 8)


def torch_inputs(feed: Feed) -> tuple[torch.Tensor, torch.Tensor]:
    """Species and descriptors as torchani takes them: one molecule of all atoms."""
    species = torch.full((1, len(feed["aev"])), -1)
    for number, element in enumerate("hcno"):
        species[0, torch.from_numpy(feed[element])] = number
    return species, torch.from_numpy(feed["aev"])[None]


def loop(job: Mapping[str, Any]) -> Run:
    """Torchani's `Ensemble`: member after member, element after element."""
    ensemble = published(job["wheel"])

    def run(feed: Feed) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            energies = ensemble(*torch_inputs(feed), atomic=True, ensemble_values=True)
        return {"energies": energies[:, 0].numpy()}

    return run


def batched(job: Mapping[str, Any]) -> Run:
    """Torchani's `BmmEnsemble`, made for inference; it returns the mean alone."""
    ensemble = published(job["wheel"]).to_infer_model()
    if "scripted" in job["name"]:
        ensemble = torch.jit.script(ensemble)
    else:  # eager, it marks ranges for NVIDIA's profiler, which raises where torch is built without CUDA
        torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: None

    def run(feed: Feed) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            return {"mean": ensemble(*torch_inputs(feed), atomic=True)[0].numpy()}

    return run


def packed(job: Mapping[str, Any]) -> Run:
    """The packed file."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1 if ONE_CORE else 0
    session = ort.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])
    return lambda feed: {"energies": session.run(["energies"], dict(feed))[0]}


def in_blocks(job: Mapping[str, Any]) -> Run:
    """The packed file, called for 1,000 atoms at a time, whose activations stay in the cache."""
    call = packed(job)

    def run(feed: Feed) -> dict[str, np.ndarray]:
        parts = []
        for start in range(0, len(feed["aev"]), BLOCK):
            part = {"aev": feed["aev"][start : start + BLOCK]}
            for element in "hcno":
                first, last = np.searchsorted(feed[element], [start, start + BLOCK])
                part[element] = feed[element][first:last] - start
            parts.append(call(part)["energies"])
        return {"energies": np.concatenate(parts, axis=1)}

    return run


MAKERS = {
    "packed": packed,
    "packed-again": packed,
    "packed, 1,000 atoms a call": in_blocks,
    "torchani loop": loop,
    "torchani BmmEnsemble": batched,
    "torchani BmmEnsemble, scripted": batched,
}

if __name__ == "__main__":
    if ONE_CORE:  # processor time: on a machine that others use too, the clock on the wall counts their time as well
        torch.set_num_threads(1)
        worker.time = SimpleNamespace(perf_counter=time.process_time)
    worker.main()
