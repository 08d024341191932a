"""Running a package's samples again: what agrees, what differs, and what is not run."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file

from ensexport.errors import ArtifactError, MismatchError, PackageError, ProviderError
from ensexport.package.samples import tensor_bytes
from ensexport.package.verifying import verify_package
from ensexport.runtime import onnx_runner
from ensexport.weighting import MemberWeights
from tests.package.builder import build_package, edit, edit_model, read, reseal, scale_weight
from tests.package.test_tampering import SCRIPT

SAMPLE = "test_data_set_0"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_package(tmp_path_factory.mktemp("base") / "p", formats=("onnx", "ts", "pt2"))


@pytest.fixture
def package(base, tmp_path):
    return shutil.copytree(base, tmp_path / "p")


def test_a_package_that_is_right(package):
    report = verify_package(package)
    answer = report.to_dict()
    assert [(c["file"], c["provider"], c["optimization"], c["sample"], c["output"]) for c in answer["checks"]] == [
        ("model.onnx", "CPUExecutionProvider", level, sample, "output")
        for level in ("disabled", "all")
        for sample in (SAMPLE, "test_data_set_1")
    ]
    assert all(c["passed"] and c["max_rel"] <= c["bound"] == 1e-5 for c in answer["checks"])
    assert [(entry["file"], entry["run"]) for entry in answer["not_run"]] == [("model.pt2", False), ("model.ts", False)]
    assert "--trust-code" in answer["not_run"][0]["reason"]
    assert answer["files"] == 9
    assert [member["name"] for member in answer["members"]] == ["m0.pt", "m1.pt", "m2.pt"]
    assert answer["warnings"] == []


def test_programs_run_where_their_code_is_trusted(package):
    report = verify_package(package, trust_code=True)
    assert {check.place.file for check in report.checks} == {"model.onnx", "model.ts", "model.pt2"}
    assert {check.place.provider for check in report.checks} == {"CPUExecutionProvider", "torch-cpu"}
    assert not report.not_run


KINDS = {
    "external": ({"external": True}, {"output"}),
    "member-axis-1": ({"member_axis": 1}, {"output"}),
    "mean": ({"emit": ["members,mean"]}, {"output", "output.mean"}),
    "members-hidden": ({"emit": ["mean"]}, {"output.mean"}),
    "float16": ({"dtype": "float16", "bound": 2e-3}, {"output"}),
    "bfloat16": ({"dtype": "bfloat16", "bound": 2e-2}, {"output"}),
    "float64": ({"dtype": "float64", "bound": 1e-10}, {"output"}),
    "triton": ({"layout": "triton", "formats": ("onnx", "ts")}, {"output"}),
    "triton-external": ({"layout": "triton", "external": True}, {"output"}),
    "member-weights": ({"emit": ["mean"], "weights": MemberWeights(), "formats": ("onnx", "ts", "pt2")},
                       {"output.mean"}),
    "no-samples": ({"batches": ()}, set()),
}  # fmt: skip


@pytest.mark.parametrize(("options", "outputs"), KINDS.values(), ids=KINDS)
def test_packages_of_all_kinds(options, outputs, tmp_path):
    package = build_package(tmp_path / "p", **options)
    report = verify_package(package, trust_code=True)
    assert all(check.passed for check in report.checks)
    assert {check.output for check in report.checks} == outputs
    models = {entry["path"] for entry in read(package)["files"] if entry["format"] in ("onnx", "torchscript", "pt2")}
    assert {check.place.file for check in report.checks} == (models if outputs else set())


def test_without_samples_it_says_that_nothing_was_run(tmp_path):
    package = build_package(tmp_path / "p", batches=())
    edit(
        package, lambda manifest: manifest["validation"].update(passed=None, members=[], tolerance=None, max_error=None)
    )
    warnings = verify_package(package).to_dict()["warnings"]
    assert "holds no samples, so nothing was run" in warnings[0]
    assert "never compared with the loop" in warnings[1]


def test_expected_values_of_the_file_itself_are_said(package):
    edit(package, lambda manifest: manifest["samples"][0].update(expected_from="file"))
    assert "is what the file itself gave" in verify_package(package).to_dict()["warnings"][0]


@pytest.mark.parametrize("member", [0, 1, 2])
def test_weights_changed_with_the_manifest_are_found_by_the_samples(member, package):
    """The digests are right again; what the file computes is not."""
    scale_weight(package, "last.weight", member, 1.001)
    with pytest.raises(MismatchError) as caught:
        verify_package(package)
    details = caught.value.details
    assert (details["file"], details["sample"], details["output"]) == ("model.onnx", SAMPLE, "output")
    assert details["member_index"] == member
    assert details["n_failed"] == 4 == details["n_checks"]
    assert f"at member {member} (m{member}.pt), index {tuple(details['index'])}: expected " in caught.value.message
    assert details["expected"] != details["actual"]
    assert "graph optimisation disabled" in caught.value.message
    assert [check["passed"] for check in details["checks"]] == [False] * 4


def test_a_weight_in_the_external_data(tmp_path):
    package = build_package(tmp_path / "p", external=True)
    content = bytearray((package / "model.onnx.data").read_bytes())
    content[3] ^= 0x40
    (package / "model.onnx.data").write_bytes(content)
    reseal(package)
    with pytest.raises(MismatchError, match=r"output 'output' of '.*model\.onnx' differs"):
        verify_package(package)


def test_a_combined_output_has_no_member(tmp_path):
    package = build_package(tmp_path / "p", emit=["mean"])
    x = np.zeros((2, 3), np.float32)
    (package / SAMPLE / "output_0.pb").write_bytes(tensor_bytes("output.mean", x))
    reseal(package)
    with pytest.raises(
        MismatchError, match=r"output 'output\.mean' .*, at index \(\d, \d\): expected 0, got "
    ) as caught:
        verify_package(package)
    assert caught.value.details["member_index"] is None


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_nan_and_inf_must_be_where_they_were(value, package):
    name, array = "output", np.array(_stored(package, f"{SAMPLE}/output_0.pb"))
    array[1, 0, 2] = value
    (package / SAMPLE / "output_0.pb").write_bytes(tensor_bytes(name, array))
    reseal(package)
    with pytest.raises(
        MismatchError, match=rf"relative inf > 1e-05, at member 1 .* \(0, 2\): expected {value}, got"
    ) as caught:
        verify_package(package)
    json.dumps(caught.value.to_dict(), allow_nan=False)


def _stored(package, path):
    return onnx.numpy_helper.to_array(onnx.TensorProto.FromString((package / path).read_bytes()))


def test_another_batch_in_the_output(package):
    array = _stored(package, f"{SAMPLE}/output_0.pb")
    (package / SAMPLE / "output_0.pb").write_bytes(tensor_bytes("output", array[:, :1]))
    reseal(package)
    with pytest.raises(MismatchError, match=r"expected float32\[3, 1, 3\], got float32\[3, 2, 3\]"):
        verify_package(package)


def test_a_difference_with_optimisation_alone_names_the_level(package, monkeypatch):
    real = onnx_runner.OnnxRunner.run

    def run(self, feed):
        results = real(self, feed)
        return results if self.optimization == "disabled" else {k: v + np.float32(1e-3) for k, v in results.items()}

    monkeypatch.setattr(onnx_runner.OnnxRunner, "run", run)
    with pytest.raises(MismatchError, match="graph optimisation all") as caught:
        verify_package(package)
    assert caught.value.details["n_failed"] == 2


def test_a_program_that_was_rewritten_is_found_where_it_is_run(package):
    content = (package / "model.ts").read_bytes()
    bias = load_file(package / "state.safetensors")["1.first.bias"].numpy()
    changed = content.replace(bias.tobytes(), (bias + np.float32(0.01)).tobytes())
    assert changed != content
    (package / "model.ts").write_bytes(changed)
    reseal(package)
    assert verify_package(package).checks
    with pytest.raises(MismatchError, match=r"of '.*model\.ts' .*, torch-cpu\): .* at member 1 ") as caught:
        verify_package(package, trust_code=True)
    assert caught.value.details["n_failed"] == 2


def test_a_model_that_onnx_runtime_refuses(package):
    def change(model):
        model.graph.node[0].op_type = "NoSuchOperator"

    edit_model(package, change)
    with pytest.raises(ArtifactError, match=r"cannot load 'model\.onnx'"):
        verify_package(package)


def test_a_model_that_does_not_run(package):
    def change(model):
        model.graph.initializer.add(name="seven", data_type=7, dims=[1], raw_data=(7).to_bytes(8, "little"))
        model.graph.node.append(onnx.helper.make_node("Reshape", ["x", "seven"], ["unused"]))

    edit_model(package, change)
    with pytest.raises(ArtifactError, match=r"cannot run '.*model\.onnx' \(sample 'test_data_set_0', CPUExec"):
        verify_package(package)


def test_a_provider_that_is_not_there(package):
    if "cuda" in _working():
        pytest.skip("there is a GPU")
    with pytest.raises(ProviderError):
        verify_package(package, providers=["cpu", "cuda"])


def _working():
    found = []
    for name in onnx_runner.offered_providers():
        try:
            onnx_runner.check_provider(name)
        except ProviderError:
            continue
        found.append(name)
    return found


def test_all_providers_are_those_that_work(package):
    report = verify_package(package, providers=["all"])
    assert {check.place.provider for check in report.checks} == {onnx_runner.PROVIDERS[name] for name in _working()}
    left_out = set(onnx_runner.offered_providers()) - set(_working())
    assert {entry.provider for entry in report.not_run} - {""} == left_out


def test_a_file_that_changes_while_it_is_verified(package, monkeypatch):
    real = onnx_runner.OnnxRunner.run

    def run(self, feed):
        (package / "README.md").write_text("# a cord\n")
        return real(self, feed)

    monkeypatch.setattr(onnx_runner.OnnxRunner, "run", run)
    with pytest.raises(PackageError, match=r"'README\.md': it was changed while it was verified"):
        verify_package(package)


def test_a_file_that_goes_while_it_is_verified(package, monkeypatch):
    real = onnx_runner.OnnxRunner.run

    def run(self, feed):
        (package / "README.md").unlink(missing_ok=True)
        return real(self, feed)

    monkeypatch.setattr(onnx_runner.OnnxRunner, "run", run)
    with pytest.raises(PackageError, match=r"'README\.md': it was removed while it was verified"):
        verify_package(package)


def test_a_package_reached_through_a_link(package, tmp_path):
    (tmp_path / "latest").symlink_to(package)
    assert verify_package(tmp_path / "latest").checks


WITHOUT_TORCH = SCRIPT.replace('("torch", "onnxruntime")', '("torch",)')


def test_onnx_files_are_verified_without_torch(package, tmp_path):
    half = build_package(tmp_path / "half", dtype="bfloat16", bound=2e-2)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH], input=json.dumps([str(package), str(half)]), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    for code, text in json.loads(done.stdout):
        assert code == 0
        assert len(json.loads(text)["checks"]) == 4
