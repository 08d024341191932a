"""What is written otherwise for ONNX Runtime's CPU provider: the same numbers, and only where it may be."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from ensexport.targets.onnx_cpu import spell_out_elu


def model_of(*nodes: onnx.NodeProto, dtype: int = TensorProto.FLOAT) -> ir.Model:
    values = {name: helper.make_tensor_value_info(name, dtype, ["n"]) for name in ("x", "h", "y")}
    inner = [values["h"]] if any("h" in node.output for node in nodes) else []
    graph = helper.make_graph(nodes, "g", [values["x"]], [values["y"]], value_info=inner)
    return ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run(model: ir.Model, x: np.ndarray) -> np.ndarray:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": x})[0]


def test_elu_is_clip_exp_sub_and_max() -> None:
    model = model_of(helper.make_node("Elu", ["x"], ["h"]), helper.make_node("Elu", ["h"], ["y"], alpha=1.0))
    x = np.concatenate([np.linspace(-200, 200, 1001), [-1e-7, 1e-7, -0.0, np.inf, -np.inf]]).astype(np.float32)
    expected = torch.nn.functional.elu(torch.nn.functional.elu(torch.from_numpy(x))).numpy()
    assert spell_out_elu(model)
    assert [node.op_type for node in model.graph][2:] == ["Clip", "Exp", "Sub", "Max"] * 2
    np.testing.assert_allclose(run(model, x), expected, rtol=1e-6, atol=1e-7)
    assert np.isnan(run(model, np.array([np.nan] * 9, np.float32))).all()


def test_names_in_the_model_give_way_to_nothing() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["elu_zero"]), helper.make_node("Elu", ["elu_zero"], ["y"])]
    model = model_of(*nodes)
    assert spell_out_elu(model)
    assert run(model, np.array([-1, 2], np.float32)).tolist() == [0, 2]


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model_of(helper.make_node("Elu", ["x"], ["y"], alpha=1.5)), id="alpha"),
        pytest.param(model_of(helper.make_node("Elu", ["x"], ["y"]), dtype=TensorProto.DOUBLE), id="float64"),
        pytest.param(model_of(helper.make_node("Relu", ["x"], ["y"])), id="none"),
    ],
)
def test_anything_else_stays(model: ir.Model) -> None:
    before = str(model.graph)
    assert not spell_out_elu(model)
    assert str(model.graph) == before
