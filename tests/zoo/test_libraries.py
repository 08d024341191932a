"""`timm:`, `torchvision:` and `hf:` with the real libraries. Run with `pytest -m zoo tests/zoo`."""

import argparse

import pytest
import torch
from safetensors.torch import save_file

from ensexport.errors import ArchitectureError, StackError
from ensexport.members.architecture import resolve_architecture
from ensexport.members.loading import load_members
from tests.zoo.stubs import declare_if_needed

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True, scope="module")
def operators():
    """torchvision's operators, where its build does not fit torch's."""
    library = declare_if_needed()
    yield
    del library


def build(text, arguments=None, base_dir=None):
    return resolve_architecture(text, arguments, base_dir).build()


def test_timm():
    assert build("timm:resnet10t", {"num_classes": 3}).fc.out_features == 3
    with pytest.raises(ArchitectureError, match="Did you mean 'resnet18'"):
        build("timm:resnet18_")
    with pytest.raises(ArchitectureError, match="timm knows no network 'hf-hub:timm/resnet18'"):
        build("timm:hf-hub:timm/resnet18")
    with pytest.raises(ArchitectureError, match=r"cannot build 'timm:resnet18.nothing'"):
        build("timm:resnet18.nothing")
    with pytest.raises(ArchitectureError, match=r"unexpected keyword argument 'colour'"):
        build("timm:resnet10t", {"colour": 1})


def test_timm_checkpoints_say_themselves_what_they_are(tmp_path):
    import timm
    from timm.utils import CheckpointSaver

    for fold in range(2):
        net = timm.create_model("resnet10t", num_classes=3).eval()
        args = argparse.Namespace(model="resnet10t", num_classes=3, gp=None, model_kwargs={"width_factor": 1.0})
        args = None if fold else args
        saver = CheckpointSaver(net, torch.optim.SGD(net.parameters()), args, checkpoint_dir=str(tmp_path))
        saver.save_checkpoint(0, metric=fold)
        (tmp_path / "last.pth.tar").rename(tmp_path / f"fold{fold}.pt")
    with pytest.raises(StackError, match=r"'resnet10t' \(num_classes=3.*\) .* with 'resnet' "):
        load_members([tmp_path / "fold0.pt", tmp_path / "fold1.pt"], "timm")
    members = load_members(tmp_path / "fold0.pt", "timm", model_args={"width_factor": None})
    assert members.architecture.name == "timm:resnet10t"
    assert members.build(0).fc.out_features == 3


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("squeezenet1_1", {"num_classes": 3}),
        ("googlenet", {"aux_logits": False}),
        ("lraspp_mobilenet_v3_large", {}),
        ("fcn_resnet50", {"num_classes": 2}),
        ("ssdlite320_mobilenet_v3_large", {}),
        ("r3d_18", {}),
        ("raft_small", {}),
    ],
)
def test_torchvision(name, arguments):
    assert sum(p.numel() for p in build(f"torchvision:{name}", arguments).parameters()) > 100_000


def test_torchvision_names_that_are_refused():
    with pytest.raises(ArchitectureError, match="cannot pack 'quantized_resnet18'"):
        build("torchvision:quantized_resnet18")
    with pytest.raises(ArchitectureError, match="Did you mean 'resnet18'"):
        build("torchvision:resnet_18")


def configurations():
    import transformers as t

    gpt2 = t.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=11, bos_token_id=0, eos_token_id=0)
    bert = t.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=11)
    return {"GPT2LMHeadModel": gpt2, "BertForSequenceClassification": bert}


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "BertForSequenceClassification"])
def test_members_saved_by_transformers_are_rebuilt_exactly(tmp_path, name):
    import transformers

    nets = []
    for fold in range(2):
        torch.manual_seed(fold)
        nets.append(getattr(transformers, name)(configurations()[name]).eval())
        nets[-1].save_pretrained(tmp_path / f"fold_{fold}")
    members = load_members([tmp_path / "fold_0", tmp_path / "fold_1"], "hf:fold_0", base_dir=tmp_path)
    ids = torch.randint(11, (2, 5))
    for index, net in enumerate(nets):
        built = members.build(index)
        assert type(built) is type(net)
        out = built(input_ids=ids)
        assert torch.equal(out.logits, net(input_ids=ids).logits)
        assert "past_key_values" not in out
        assert built.config._attn_implementation == "sdpa"


def test_model_args_change_the_configuration(tmp_path):
    configurations()["GPT2LMHeadModel"].save_pretrained(tmp_path)
    net = build("hf:.", {"n_layer": 3, "attn_implementation": "eager"}, tmp_path)
    assert type(net).__name__ == "GPT2Model"  # the file names no class
    assert len(net.h) == 3
    assert net.config._attn_implementation == "eager"
    with pytest.raises(ArchitectureError, match=r"GPT2Config has no 'n_leyer'\. Did you mean 'n_layer'"):
        build("hf:.", {"n_leyer": 3}, tmp_path)


def test_code_in_the_folder_is_never_run(tmp_path):
    (tmp_path / "mine.py").write_text("raise SystemExit('run')")
    save_file({"w": torch.ones(1)}, tmp_path / "model.safetensors")
    text = (
        '{"model_type": "%s", "architectures": ["Mine"], "auto_map": {"AutoConfig": "mine.C", "AutoModel": "mine.M"}}'
    )
    for kind in ("mine", "bert"):
        (tmp_path / "config.json").write_text(text % kind)
        with pytest.raises(ArchitectureError, match="needs code from the folder"):
            build("hf:.", None, tmp_path)
