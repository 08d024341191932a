"""Log a package to MLflow, its ONNX file as a model and its folder as artifacts; load it back, compare."""

import argparse
import hashlib
import json
import os
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # mlflow reads it as it is imported

import mlflow
import mlflow.onnx
import numpy as np
import onnx
import onnxruntime as ort
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.datasets import load_digits

PROVIDERS = ["CPUExecutionProvider"]


def signature_of(manifest: dict) -> ModelSignature:
    """MLflow's signature, from what the manifest says of the file; -1 is a dynamic dimension."""
    schemas = []
    for kind in ("inputs", "outputs"):
        specs = []
        for tensor in manifest[kind]:
            shape = tuple(size if isinstance(size, int) else -1 for size in tensor["shape"])
            specs.append(TensorSpec(np.dtype(tensor["dtype"]), shape, tensor["name"]))
        schemas.append(Schema(specs))
    return ModelSignature(*schemas)


def log(package: Path, manifest: dict) -> tuple[str, str]:
    """Return the URI of the model and the run's id."""
    with mlflow.start_run(run_name=manifest["name"] or package.name) as run:
        mlflow.log_params({"n_members": manifest["n_members"], "strategy": manifest["plan"]["strategy"]})
        mlflow.log_metric("proof_max_error", manifest["validation"]["max_error"])
        mlflow.log_artifacts(str(package), "package")
        model = mlflow.onnx.log_model(
            onnx.load(package / "model.onnx"),
            name="ensemble",
            signature=signature_of(manifest),
            onnx_execution_providers=PROVIDERS,
            pip_requirements=[f"{name.__name__}=={name.__version__}" for name in (mlflow, onnx, ort)],
            save_as_external_data=False,  # keeps the bytes; above 2 GiB protobuf forces True
        )
    return model.model_uri, run.info.run_id


def sha256(path: Path) -> str:
    """The file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(package: Path, store: Path) -> None:
    """Log, load back, compare.

    Raises:
        SystemExit: What came back is not what went in.
    """
    store.mkdir(exist_ok=True)
    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{store.resolve()}/mlflow.db")
    if mlflow.get_experiment_by_name("digits") is None:
        mlflow.create_experiment("digits", artifact_location=(store / "artifacts").resolve().as_uri())
    mlflow.set_experiment("digits")
    manifest = json.loads((package / "manifest.json").read_text())
    uri, run_id = log(package, manifest)
    run = mlflow.get_run(run_id)
    print(f"logged a model of {run.data.params['n_members']} members,", end=" ")
    print(f"proven to {run.data.metrics['proof_max_error']:.1e} of the largest value")

    loaded = mlflow.pyfunc.load_model(uri)
    for kind, schema in (("input", loaded.metadata.signature.inputs), ("output", loaded.metadata.signature.outputs)):
        for tensor in schema:
            print(f"{kind:<7} {tensor.name:<26} {tensor.type} {list(tensor.shape)}")
    images = (load_digits().images / 16).astype(np.float32)
    session = ort.InferenceSession(package / "model.onnx", providers=PROVIDERS)
    names = [node.name for node in session.get_outputs()]
    direct = session.run(names, {"x": images})
    answers = loaded.predict({"x": images})
    off = max(float(np.abs(answers[name] - value).max()) for name, value in zip(names, direct, strict=True))
    print(f"loaded back, {len(images)} images: largest difference to the file run directly {off}")

    (said,) = (file["sha256"] for file in manifest["files"] if file["path"] == "model.onnx")
    model = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri)) / "model.onnx"
    folder = Path(mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="package", dst_path=str(store)))
    same = [sha256(model) == said, all(sha256(folder / file["path"]) == file["sha256"] for file in manifest["files"])]
    print(f"has the manifest's digest: the model {same[0]}, the {len(manifest['files'])} files of the folder {same[1]}")
    if off or not all(same):
        raise SystemExit("what MLflow gave back is not what was logged")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package", nargs="?", type=Path, default=Path("pkg"), help="the package folder")
    parser.add_argument("--store", type=Path, default=Path("store"), help="folder of the local store")
    arguments = parser.parse_args()
    main(arguments.package, arguments.store)
