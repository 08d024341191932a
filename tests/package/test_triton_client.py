"""docs/triton.md: its configuration is what is written, and its client works over the protocol."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from ensexport.emission import parse_emission
from ensexport.package.triton import model_places, triton_files
from tests.cli.readmes import blocks
from tests.package import triton_rules
from tests.package.triton_packs import make_pack
from tests.package.v2_server import serving

TEXT = (Path(__file__).parents[2] / "docs" / "triton.md").read_text()
LABELS = ["legal", "fraud", "unclear"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model's folder as the page describes it, called `fraud`."""
    folder = tmp_path_factory.mktemp("repo") / "fraud"
    pack = make_pack(tmp_path_factory.mktemp("packed"), "mlp", emission=parse_emission("probs,entropy"))
    made = triton_files(pack.manifest, pack.samples, name="fraud", labels=LABELS)
    files = {**made.files, model_places("onnx")["model.onnx"]: pack.path.read_bytes()}
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def direct(model, rows):
    """What the file itself answers."""
    session = ort.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["output.probs", "output.entropy"], {"x": rows})


def test_the_configuration_on_the_page_is_what_is_written(model):
    shown = triton_rules.parse(blocks(TEXT, "protobuf")[0].encode())
    written = triton_rules.parse((model / "config.pbtxt").read_bytes())
    for left_out in ("optimization", "model_warmup"):
        written.ClearField(left_out)
    assert shown == written
    assert blocks(TEXT, "protobuf")[0].strip() in (model / "config.pbtxt").read_text()


def test_the_client_on_the_page_gets_what_the_file_answers(model):
    (client,) = blocks(TEXT, "python")
    with serving(model) as address:
        assert client.count('"localhost:8000"') == 1
        names = {}
        exec(compile(client.replace("localhost:8000", address), "docs/triton.md", "exec"), names)
    probs, entropy = direct(model, names["rows"])
    np.testing.assert_allclose(names["probs"], probs, rtol=1e-5)
    np.testing.assert_allclose(names["entropy"], entropy, rtol=1e-5)
    assert names["entropy"].shape == (8,)
    assert names["first"] == [LABELS[index] for index in probs.argmax(axis=1)]


def infer(address, rows, datatype="FP32", name="x"):
    with triton.InferenceServerClient(address) as client:
        x = triton.InferInput(name, rows.shape, datatype)
        x.set_data_from_numpy(rows)
        return client.infer("fraud", [x])


@pytest.mark.parametrize(
    ("rows", "datatype", "message"),
    [
        (np.zeros((65, 4), np.float32), "FP32", "batch of"),
        (np.zeros((2, 5), np.float32), "FP32", "unexpected shape"),
        (np.zeros((2, 4), np.float64), "FP64", "data-type float64"),
        (np.zeros(4, np.float32), "FP32", "unexpected shape"),
    ],
    ids=["too many rows", "too wide", "another dtype", "no batch"],
)
def test_requests_that_the_configuration_excludes_are_refused(model, rows, datatype, message):
    with serving(model) as address, pytest.raises(InferenceServerException) as caught:
        infer(address, rows, datatype)
    assert message in str(caught.value)


def test_the_largest_batch_is_answered(model):
    rows = np.random.default_rng(1).normal(size=(64, 4)).astype(np.float32)
    with serving(model) as address:
        answer = infer(address, rows)
    np.testing.assert_allclose(answer.as_numpy("output.probs"), direct(model, rows)[0], rtol=1e-5)


def test_a_model_whose_weights_lie_beside_it_is_served_from_a_folder(model, tmp_path):
    folder = tmp_path / "fraud"
    places = model_places("onnx", has_external_data=True)
    (folder / "1" / "model.onnx").mkdir(parents=True)
    onnx.save(
        onnx.load(model / "1" / "model.onnx"), folder / places["model.onnx"], save_as_external_data=True,
        location="model.onnx.data", size_threshold=0,
    )  # fmt: skip
    assert (folder / places["model.onnx.data"]).stat().st_size > 100
    for path in ("config.pbtxt", "labels.txt", "warmup/input_0.bin"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes((model / path).read_bytes())
    rows = np.ones((3, 4), np.float32)
    with serving(folder) as address:
        np.testing.assert_allclose(infer(address, rows).as_numpy("output.probs"), direct(model, rows)[0], rtol=1e-5)
