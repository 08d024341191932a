"""Twenty thousand damaged files: each loads or is refused with an error of ours; nothing hangs, crashes or runs.

A crash of the process would lose the number of the file: so each file is written to a place that survives, and
`python -m tests.hostile.test_fuzz SEED NUMBER` makes one again.
"""

import os
import sys
import time
import warnings

import pytest
import torch

from ensexport.errors import EnsexportError
from ensexport.members.reading import read_checkpoint
from tests.hostile.mutations import mutate_legacy, mutate_safetensors, mutate_torch_zip, source_of
from tests.hostile.seeds import safetensors_bytes, torch_bytes, trainer_state, weights

PER_SEED = 1000
MAX_SECONDS = 2.0


def honest_files():
    tied = torch.ones(3)
    return (
        (mutate_torch_zip, torch_bytes(weights())),
        (mutate_torch_zip, torch_bytes(trainer_state())),
        (mutate_torch_zip, torch_bytes({"a": tied, "b": tied[1:], "p": torch.nn.Parameter(tied)})),
        (mutate_legacy, torch_bytes(weights(), legacy=True)),
        (mutate_legacy, torch_bytes({**trainer_state(), "half": None}, legacy=True)),  # torch cannot read that one back
        (mutate_safetensors, safetensors_bytes()),
        (mutate_safetensors, safetensors_bytes(metadata={"format": "pt"})),
    )


def damaged_file(honest, seed, number):
    source = source_of(seed, number)
    mutate, data = honest[number % len(honest)]
    return mutate(data, source)


def read(path):
    """Return the error, or None after every byte was read: memory that is not there ends the process here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for tensor in read_checkpoint(path).state.values():
                tensor.clone().reshape(-1).view(torch.uint8).sum()
    except BaseException as error:  # noqa: BLE001 - that there is no other one is what is tested
        return error
    return None


@pytest.mark.parametrize("seed", range(20))
def test_damaged_files_load_or_are_refused(tmp_path, monkeypatch, seed):
    monkeypatch.chdir(tmp_path)
    canary = tmp_path / "canary"
    monkeypatch.setattr(os, "system", lambda *_: canary.touch())
    honest = honest_files()
    path = tmp_path / "m.pt"
    refused = 0
    for number in range(PER_SEED):
        path.write_bytes(damaged_file(honest, seed, number))
        started = time.process_time()
        error = read(path)
        assert error is None or isinstance(error, EnsexportError), f"seed {seed}, file {number}: {error!r}"
        if error is not None:
            refused += 1
            assert error.exit_code == 3, f"seed {seed}, file {number}"
            assert "weights_only" not in str(error), f"seed {seed}, file {number}"
        assert time.process_time() - started < MAX_SECONDS, f"seed {seed}, file {number} took too long"
    assert not canary.exists()
    assert sorted(tmp_path.iterdir()) == [path], "a damaged file left something behind"
    assert PER_SEED // 2 < refused < PER_SEED, "most damage is found, and some files are as good as before"


if __name__ == "__main__":
    sys.stdout.buffer.write(damaged_file(honest_files(), int(sys.argv[1]), int(sys.argv[2])))
