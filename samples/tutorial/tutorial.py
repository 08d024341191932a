"""The steps of the PyTorch tutorial "Model ensembling" with this library, and on to ONNX files.

https://docs.pytorch.org/tutorials/intermediate/ensembling.html
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from model import SimpleMLP
from torch.utils.benchmark import Timer

import ensexport

HERE = Path(__file__).parent
INPUT = "x:float32[batch,1,28,28]"


def predict(path: Path, x: torch.Tensor) -> np.ndarray:
    """Run an ONNX file in ONNX Runtime."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (predictions,) = session.run(None, {"x": x.numpy()})
    return predictions


def show(what: str, predictions: torch.Tensor | np.ndarray, expected: torch.Tensor) -> None:
    """Print how far predictions are from the loop's, and stop if that is too far."""
    tensor = torch.as_tensor(predictions)
    assert torch.allclose(tensor, expected, atol=1e-3, rtol=1e-5)  # the tutorial's own bound
    print(f"  {what:<32} {tuple(tensor.shape)}   max difference to the loop {(tensor - expected).abs().max():.1e}")


@torch.no_grad()
def main(calls: int) -> None:
    """Run both options of the tutorial, in memory and from files."""
    torch.manual_seed(0)
    num_models = 10
    data = torch.randn(100, 64, 1, 28, 28)
    models = [SimpleMLP() for _ in range(num_models)]

    # Save the members, as training would have done, for the command line.
    (HERE / "ckpts").mkdir(exist_ok=True)
    for index, model in enumerate(models):
        torch.save(model.state_dict(), HERE / "ckpts" / f"model_{index}.pt")

    print("Option 1: a different minibatch for each model")
    minibatches = data[:num_models]
    loop = torch.stack([model(minibatch) for model, minibatch in zip(models, minibatches, strict=True)])
    ensemble = ensexport.stack(models, in_dims=0)
    show("ensexport.stack(in_dims=0)", ensemble(minibatches), loop)
    ensexport.export(ensemble, HERE / "per_member.onnx", inputs=[INPUT], force=True)
    show("per_member.onnx in ONNX Runtime", predict(HERE / "per_member.onnx", minibatches), loop)

    print("Option 2: the same minibatch for all models")
    minibatch = data[0]
    loop = torch.stack([model(minibatch) for model in models])
    ensemble = ensexport.stack(models)
    show("ensexport.stack()", ensemble(minibatch), loop)
    ensexport.export(ensemble, HERE / "shared.onnx", inputs=[INPUT], force=True)
    show("shared.onnx in ONNX Runtime", predict(HERE / "shared.onnx", minibatch), loop)

    print(f"Performance in torch, batch 64, 1 thread, mean of {calls} calls")
    scope = {"models": models, "minibatch": minibatch, "ensemble": ensemble}
    for what, statement in (("loop", "[model(minibatch) for model in models]"), ("stacked", "ensemble(minibatch)")):
        print(f"  {what:<32} {Timer(statement, globals=scope).timeit(calls).mean * 1e3:.2f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="calls to time")
    main(parser.parse_args().calls)
