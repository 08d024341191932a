"""The sample of ANI-1x, with weights of its shapes in the published layout: no torchani, no network."""

import bz2
import importlib
import re
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import single_threaded_processes  # noqa: F401 - fixture
from tests.cli.projects import run
from tests.cli.readmes import blocks, copy_samples

ROOT = Path(__file__).parent.parent
WHEEL = "torchani-2.2.4-py3-none-any.whl"
WIDTHS = {"H": (384, 160, 128, 96, 1), "C": (384, 144, 112, 96, 1), "N": (384, 128, 112, 96, 1)}
WIDTHS["O"] = WIDTHS["N"]
Layers = list[tuple[np.ndarray, np.ndarray]]


def write_network(archive: zipfile.ZipFile, folder: str, element: str, layers: Layers, celu: int = 9) -> None:
    text = f"!InputFile for Force Prediction Network\ninputsize=384;\natom_net {element} $\n"
    for number, (weight, bias) in enumerate(layers, 1):
        nodes, inputs = weight.shape
        stem = f"ANN-{element}.nnf-l{number}"
        text += (
            f"layer [\nnodes={nodes};\nactivation={celu if number < len(layers) else 6};\ntype=0;\n"
            f"blocksize={inputs};\nl2valu=0.000100;\nmaxnorm=-nan;\n"
            f"weights=FILE:{stem}.wparam[{weight.size}];\nbiases=FILE:{stem}.bparam[{bias.size}];\n]\n"
        )
        archive.writestr(f"{folder}/{stem}.wparam", weight.astype("<f4").tobytes())
        archive.writestr(f"{folder}/{stem}.bparam", bias.astype("<f4").tobytes())
    raw = (text + "$\n\0").encode()
    archive.writestr(f"{folder}/ANN-{element}.nnf", f"{len(raw)}=\n".encode() + bz2.compress(raw))


def write_wheel(path: Path, n_members: int = 8, celu: int = 9) -> list[dict[str, Layers]]:
    random = np.random.default_rng(0)
    members = []
    with zipfile.ZipFile(path, "w") as archive:
        for member in range(n_members):
            folder = f"torchani/resources/ani-1x_8x/train{member}/networks"
            networks = {
                element: [
                    (random.normal(scale=inputs**-0.5, size=(nodes, inputs)), random.normal(scale=0.1, size=nodes))
                    for inputs, nodes in pairwise(widths)
                ]
                for element, widths in WIDTHS.items()
            }
            for element, layers in networks.items():
                write_network(archive, folder, element, layers, celu)
            members.append(networks)
    return members


def energy(layers: Layers, x: np.ndarray) -> np.ndarray:
    """By hand, in float64."""
    for number, (weight, bias) in enumerate(layers, 1):
        x = x @ weight.astype(np.float32).T + bias.astype(np.float32)
        if number < len(layers):
            x = np.where(x > 0, x, 0.1 * np.expm1(np.minimum(x, 0) / 0.1))
    return x[:, 0]


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """A copy of the sample, whose modules can be imported."""
    copy_samples(ROOT, tmp_path)
    folder = tmp_path / "samples" / "ani"
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name in ("model", "convert"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield folder
    for name in ("model", "convert"):
        sys.modules.pop(name, None)


def test_members_in_the_published_layout_pack_and_give_the_energies_computed_by_hand(sample):
    networks = write_wheel(sample / WHEEL)
    convert = importlib.import_module("convert")
    convert.main(sample / WHEEL, sample / "ckpts")
    result = run("pack", "ckpts/train0.pt", "ckpts/train5.pt", "-o", "ani1x.onnx", "--json")
    assert result.exit_code == 0, result.err
    assert not result.answer["plan"]["fallbacks"]

    import onnx
    import onnxruntime as ort

    ops = [node.op_type for node in onnx.load("ani1x.onnx").graph.node]
    assert not {"Celu", "Elu", "Div"} & set(ops)
    assert ops.count("Exp") == 12  # three activations an element, for all members at once
    assert ops.count("Gemm") == 4
    random = np.random.default_rng(1)
    aev = random.random((50, 384), dtype=np.float32)
    species = random.integers(0, 5, 50)  # 4 is padding
    rows = {element: np.flatnonzero(species == number) for number, element in enumerate("HCNO")}
    session = ort.InferenceSession("ani1x.onnx", providers=["CPUExecutionProvider"])
    (energies,) = session.run(["energies"], {"aev": aev, **{key.lower(): own for key, own in rows.items()}})
    for found, member in zip(energies, (networks[0], networks[5]), strict=True):
        expected = np.zeros(50)
        for element, own in rows.items():
            expected[own] = energy(member[element], aev[own].astype(np.float64))
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)


def test_another_activation_is_refused(sample):
    write_wheel(sample / WHEEL, n_members=1, celu=5)
    convert = importlib.import_module("convert")
    with pytest.raises(
        ValueError, match=r"expected CELU between layers \(9, ..., 9, 6\), got .*\['5', '5', '5', '6'\]"
    ):
        convert.main(sample / WHEEL, sample / "ckpts")


def test_requirements_leave_torch_alone():
    folder = ROOT / "samples" / "ani"
    lines = [line for line in (folder / "requirements.txt").read_text().splitlines() if line[:1] != "#"]
    assert [re.match(r"\w+", line)[0] for line in lines] == ["torchani", "h5py"]
    (block,) = blocks((folder / "README.md").read_text(), "console")
    installs = [line for line in block.splitlines() if " pip " in line]
    assert len(installs) == 2
    assert all("--no-deps" in line for line in installs)
