"""Small artifacts for the members curve, written node by node: member k returns `x + bias[k]`."""

import json

import numpy as np
import onnx

from tests.bench.graphs import node, tensor, write
from tests.zoo.stubs import declare_if_needed

TORCHVISION = declare_if_needed()  # torchmetrics imports torchvision where that is installed


def shifted(path, biases, *, spec="x:float32[batch,{}]", per_member=False, **more):
    """An artifact whose member k returns `x + biases[k]`; `biases` is `(N, ...)`, one row of one member's output."""
    biases = np.asarray(biases, np.float32)
    n_members, *row = biases.shape
    dims = [n_members, "batch", *row] if per_member else ["batch", *row]
    nodes = [node("Add", "x,bias", "y")]
    write(path, nodes, {"x": dims}, ["y"], {"bias": biases[:, None]})
    spec = spec.format(",".join(map(str, row)))
    return with_metadata(path, n_members, [spec], per_member=["x"] if per_member else [], **more)


def with_metadata(path, n_members, inputs, **more):
    metadata = {
        "n_members": n_members, "member_axis": 0, "inputs": inputs, "per_member": [], "outputs": ["y"],
        "dims": {"batch": [1, None]}, "members": [{}] * n_members, **more,
    }  # fmt: skip
    model = onnx.load(path)
    model.metadata_props.add(key="ensexport", value=json.dumps(metadata))
    onnx.save(model, path)
    return path


def saved(path, **arrays):
    np.savez(path, **arrays)
    return path


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def random_classes(n_members=4, rows=150, classes=5):
    """Inputs `(rows, classes)`, biases `(N, classes)` and labels that follow the inputs more often than not."""
    x = 2 * tensor(rows, classes)
    labels = (x + tensor(rows, classes, seed=2)).argmax(1)
    return x, tensor(n_members, classes, seed=1), labels
