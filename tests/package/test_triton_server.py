"""What is written, read by a real Triton server; see tests.package.triton_server. Needs a package index for pip."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ensexport.emission import parse_emission
from ensexport.package.triton import ServingOptions, model_places, triton_files
from tests.cli.readmes import blocks
from tests.package import triton_server
from tests.package.triton_packs import PACKS, make_pack

pytestmark = pytest.mark.slow

LABELS = ["cat", "dog", "eel"]
LABELLED = ("mlp", "cnn", "float16")
WITH_WEIGHTS, FOLDER = "weights in the request", "weights beside"


def folder_name(name):
    return name.replace(" ", "_").replace(",", "")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    try:
        return triton_server.install(tmp_path_factory.mktemp("server"))
    except triton_server.UnavailableError as error:
        pytest.skip(f"the server cannot be installed: {error}")


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    return {name: make_pack(tmp_path_factory.mktemp("packed"), name) for name in PACKS}


def write_model(repository, name, pack, *, has_external_data=False, **options):
    """Write a model's folder, with what else lies in a package."""
    folder = repository / folder_name(name)
    made = triton_files(pack.manifest, pack.samples, name=folder.name, **options)
    others = {"manifest.json": b"{}", "README.md": b"#", "test_data_set_0/input_0.pb": b"x"}
    place = folder / model_places("onnx", has_external_data=has_external_data)["model.onnx"]
    for path, content in {**made.files, **others, str(place.relative_to(folder)): pack.path.read_bytes()}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    if has_external_data:
        onnx.save(onnx.load(pack.path), place, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return made


@pytest.fixture(scope="module")
def server(home, packs, tmp_path_factory):
    """A server of all packed files, batched where they can be; yields its address."""
    repository = tmp_path_factory.mktemp("repository")
    for name, pack in packs.items():
        write_model(repository, name, pack, labels=LABELS if name in LABELLED else None)
    write_model(repository, WITH_WEIGHTS, packs["weights"], options=ServingOptions(max_batch_size=0))
    write_model(repository, FOLDER, packs["mlp"], has_external_data=True)
    with triton_server.running(home, repository) as address:
        yield address


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server, concurrency=8) as client:
        yield client


def tensor(name, array):
    value = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    value.set_data_from_numpy(array)
    return value


def inputs_of(client, name, samples):
    """The samples as a client sends them: of the rank that the server says."""
    config = client.get_model_config(folder_name(name))
    lead = 1 if config["max_batch_size"] else 0
    ranks = {entry["name"]: len(entry["dims"]) + lead for entry in config["input"]}
    return [tensor(key, array[..., None] if array.ndim < ranks[key] else array) for key, array in samples.items()]


@pytest.mark.parametrize("name", [*PACKS, WITH_WEIGHTS, FOLDER])
def test_every_model_is_loaded_warmed_up_and_answers_as_its_file_does(client, packs, name):
    pack = packs[{WITH_WEIGHTS: "weights", FOLDER: "mlp"}.get(name, name)]
    answer = client.infer(folder_name(name), inputs_of(client, name, pack.samples))
    names = [value.name for value in pack.session.get_outputs()]
    for output, expected in zip(names, pack.session.run(names, pack.samples), strict=True):
        array = answer.as_numpy(output)
        assert array.dtype == expected.dtype
        np.testing.assert_allclose(array.ravel(), expected.ravel(), rtol=1e-3 if name == "float16" else 1e-5, atol=1e-6)
        assert array.shape == (expected.shape if expected.ndim > 1 else (*expected.shape, 1))


def test_requests_are_put_together(client, packs):
    generator = np.random.default_rng(0)
    rows = [generator.normal(size=(1 + index % 3, 4)).astype(np.float32) for index in range(60)]
    waiting = [client.async_infer("mlp", [tensor("x", array)]) for array in rows]
    for array, one in zip(rows, waiting, strict=True):
        (expected,) = packs["mlp"].session.run(None, {"x": array})
        np.testing.assert_allclose(one.get_result().as_numpy("output"), expected, rtol=1e-4, atol=1e-6)
    (statistics,) = client.get_inference_statistics("mlp")["model_stats"]
    sizes = {entry["batch_size"] for entry in statistics["batch_stats"]}
    assert {1, 64} <= sizes  # the warm-up


def test_member_weights_are_taken_where_requests_are_not_batched(client, packs):
    x = tensor("x", packs["weights"].samples["x"])
    first = tensor("member_weights", np.float32([1, 0, 0]))
    name = folder_name(WITH_WEIGHTS)
    assert np.abs(client.infer(name, [x, first]).as_numpy("output.var")).max() < 1e-6
    assert np.abs(client.infer(name, [x]).as_numpy("output.var")).max() > 1e-3
    with pytest.raises(InferenceServerException, match="expected 1 inputs but got 2"):
        client.infer("weights", [x, first])


def test_labels_are_those_of_the_largest_scores(client, packs):
    def best(name, output):
        wanted = triton.InferRequestedOutput(output, class_count=1)
        answer = client.infer(name, [tensor("x", packs[name].samples["x"])], outputs=[wanted])
        return [text.decode().split(":", 2)[1:] for text in answer.as_numpy(output)[:, 0]]

    probs, _ = packs["cnn"].session.run(None, packs["cnn"].samples)
    assert best("cnn", "output.probs") == [[str(index), LABELS[index]] for index in probs.argmax(axis=1)]
    (members,) = packs["mlp"].session.run(None, packs["mlp"].samples)
    places = members.reshape(2, 9).argmax(axis=1)
    assert best("mlp", "output") == [[str(i), f"{LABELS[i % 3]} (member {i // 3})"] for i in places]
    with pytest.raises(InferenceServerException, match="unsupported type 'FP16'"):
        best("float16", "output.mean")


@pytest.mark.parametrize(
    ("shape", "message"),
    [((65, 4), "batch-size must be <= 64"), ((2, 5), "unexpected shape for input 'x'")],
    ids=["too many rows", "too wide"],
)
def test_what_the_configuration_excludes_is_refused(client, shape, message):
    with pytest.raises(InferenceServerException, match=message):
        client.infer("mlp", [tensor("x", np.zeros(shape, np.float32))])


def test_the_client_on_the_page_works(home, tmp_path):
    repository = tmp_path / "page"
    (tmp_path / "packed").mkdir()
    pack = make_pack(tmp_path / "packed", "mlp", emission=parse_emission("probs,entropy"))
    write_model(repository, "fraud", pack, labels=LABELS)
    page = (Path(__file__).parents[2] / "docs" / "triton.md").read_text()
    names = {}
    with triton_server.running(home, repository) as address:
        exec(compile(blocks(page, "python")[0].replace("localhost:8000", address), "docs/triton.md", "exec"), names)
    probs, entropy = pack.session.run(["output.probs", "output.entropy"], {"x": names["rows"]})
    np.testing.assert_allclose(names["probs"], probs, rtol=1e-5)
    np.testing.assert_allclose(names["entropy"], entropy, rtol=1e-5)
    assert names["first"] == [LABELS[index] for index in probs.argmax(axis=1)]


def test_a_folder_that_is_no_model_stops_the_server(home, packs, tmp_path):
    """Why nothing may be staged inside of a repository, not even under a hidden name."""
    repository = tmp_path / "hidden"
    write_model(repository, "mlp", packs["mlp"])
    (repository / ".mlp.partial").mkdir()
    with pytest.raises(AssertionError) as caught, triton_server.running(home, repository):
        pass
    assert "Poll failed for model directory '.mlp.partial'" in (home / "hidden.log").read_text(errors="replace")
    assert "the server did not start" in str(caught.value)
