"""docs/outputs.md: the example of preprocessing inside the member runs, and does what the page says."""

from pathlib import Path

import onnxruntime as ort
import torch

from tests.cli.projects import load_factory, make_project
from tests.cli.readmes import blocks, check_block

TEXT = (Path(__file__).parent.parent / "docs" / "outputs.md").read_text()


def test_preprocessing_inside_the_member(tmp_path, monkeypatch):
    (source,) = blocks(TEXT, "python")
    (command,) = blocks(TEXT, "console")
    monkeypatch.chdir(make_project(tmp_path / "project", source))  # checkpoints of the bare `Net`
    check_block(command)
    pixels = torch.randint(0, 256, (5, 3, 20, 24), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    probabilities = []
    for index in range(3):
        net = load_factory(source)().eval()
        net.load_state_dict(torch.load(f"ckpts/m{index}.pt", weights_only=True))
        probabilities.append(net((pixels / 255 - mean) / std).softmax(-1))
    expected = torch.stack(probabilities).mean(0)
    session = ort.InferenceSession("pixels.onnx", providers=["CPUExecutionProvider"])
    (actual,) = session.run(["output.probs"], {"image": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), expected, rtol=1e-5, atol=1e-6)
