"""Names out of libraries: small stand-ins for them here, the real ones in tests/zoo/test_libraries.py."""

import json
import subprocess
import sys
import types

import pytest
import torch
from torch import nn

from ensexport.errors import ArchitectureError, StackError, UsageError
from ensexport.members.architecture import resolve_architecture
from ensexport.members.containers import Origin
from ensexport.members.libraries import own_architecture


class Net(nn.Linear):
    """Keeps what it was called with, as `called`."""

    def __init__(self, called=(), width=2):
        super().__init__(4, width)
        self.called = called


def module(monkeypatch, name, **attributes):
    found = types.ModuleType(name)
    vars(found).update(attributes)
    monkeypatch.setitem(sys.modules, name, found)
    return found


@pytest.fixture
def timm(monkeypatch):
    names = ["resnet18", "resnet34", "vit_tiny_patch16_224"]

    def create_model(model_name, pretrained=False, checkpoint_path=None, **kwargs):
        if "colour" in kwargs:
            raise TypeError("ResNet.__init__() got an unexpected keyword argument 'colour'")
        return Net((model_name, pretrained, kwargs), width=kwargs.get("num_classes", 2))

    return module(
        monkeypatch,
        "timm",
        create_model=create_model,
        is_model=lambda name: name.partition(".")[0] in names,
        list_models=lambda: names,
    )


@pytest.fixture
def torchvision(monkeypatch):
    def resnet18(*, weights=1, progress=True, **kwargs):
        return Net((weights, kwargs))

    def fcn_resnet50(*, weights=1, weights_backbone=1, num_classes=21):
        return Net((weights, weights_backbone, num_classes))

    def googlenet(*, weights=1, **kwargs):
        return Net((weights, kwargs))

    builders = {"resnet18": resnet18, "fcn_resnet50": fcn_resnet50, "googlenet": googlenet, "quantized_resnet18": None}
    builders["quantized_odd"] = None
    package = module(monkeypatch, "torchvision")
    package.models = module(
        monkeypatch,
        "torchvision.models",
        list_models=lambda: list(builders),
        get_model_builder=builders.__getitem__,
        get_model=lambda name, **kwargs: builders[name](**kwargs),
    )
    return package


class Config:
    """A configuration as transformers makes them: any value becomes an attribute."""

    def __init__(self, **values):
        self.__dict__ |= {"hidden_size": 8, "num_labels": 2, "use_cache": True} | values

    @classmethod
    def from_dict(cls, values):
        return cls(**values)


@pytest.fixture
def transformers(monkeypatch):
    class PreTrainedModel(Net):
        _supports_sdpa = True

        @classmethod
        def _from_config(cls, config, attn_implementation):
            net = cls((cls.__name__, attn_implementation))
            net.config = config
            return net

    class TinyForClassification(PreTrainedModel):
        pass

    class OldModel(PreTrainedModel):
        _supports_sdpa = False

    calls = []

    class AutoConfig:
        @classmethod
        def from_pretrained(cls, folder, **kwargs):
            calls.append(kwargs)
            return Config(**json.loads((folder / "config.json").read_text()))

    return module(
        monkeypatch,
        "transformers",
        CONFIG_MAPPING={"tiny": Config, "old": Config},
        MODEL_MAPPING={Config: TinyForClassification},
        AutoConfig=AutoConfig,
        AutoModel=type("AutoModel", (), {"from_config": TinyForClassification._from_config}),
        PreTrainedModel=PreTrainedModel,
        TinyForClassification=TinyForClassification,
        OldModel=OldModel,
        pipeline=print,
        calls=calls,
    )


def write_config(folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


# -- any library -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("timm:", "timm:NAME"),
        ("timm", "timm:NAME"),
        ("torchvision", "torchvision:NAME"),
        ("hf: ", "hf:FOLDER_WITH_config.json"),
    ],
)
def test_a_library_without_a_name_is_a_usage_error(text, form):
    with pytest.raises(UsageError, match=f"cannot read the model {text!r}: no name is given") as caught:
        resolve_architecture(text)
    assert form in caught.value.hint


@pytest.mark.parametrize(
    ("text", "library"),
    [("timm:resnet18", "timm"), ("torchvision:resnet18", "torchvision"), ("hf:.", "transformers")],
)
def test_a_library_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch, text, library):
    monkeypatch.setitem(sys.modules, library, None)
    write_config(tmp_path, model_type="tiny")
    with pytest.raises(ArchitectureError, match=f"cannot look up a network: {library} is not installed") as caught:
        resolve_architecture(text, base_dir=tmp_path)
    assert caught.value.hint == 'Install it: pip install "ensexport[zoo]".'
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("import torchvision_c_extension", "ModuleNotFoundError: No module named 'torchvision_c_extension'"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", "RuntimeError: operator torchvision::nms"),
    ],
)
def test_a_library_that_cannot_be_imported_is_named_with_the_reason(tmp_path, monkeypatch, body, what):
    (tmp_path / "timm.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    with pytest.raises(ArchitectureError, match=f"cannot import 'timm': {what}") as caught:
        resolve_architecture("timm:resnet18")
    assert "same index" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "argument"),
    [
        ("timm:resnet18", "pretrained"),
        ("timm:resnet18", "checkpoint_path"),
        ("torchvision:resnet18", "weights"),
        ("torchvision:fcn_resnet50", "weights_backbone"),
        ("hf:.", "trust_remote_code"),
    ],
)
def test_arguments_that_fetch_weights_or_run_code_are_refused(text, argument):
    with pytest.raises(UsageError, match=f"cannot give '{text}' the argument '{argument}'"):
        resolve_architecture(text, {argument: True})


def test_the_libraries_are_imported_only_when_asked_for():
    code = "import sys, ensexport.members.libraries as _; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {"timm", "torchvision", "transformers"} & set(done.stdout.split())


# -- timm ------------------------------------------------------------------------------------------


def test_timm_is_asked_for_the_network_without_weights(timm):
    architecture = resolve_architecture("timm:resnet34.a1_in1k", {"num_classes": 5})
    assert architecture.name == "timm:resnet34.a1_in1k"
    assert architecture.model_args == {"num_classes": 5}
    assert architecture.build().called == ("resnet34.a1_in1k", False, {"num_classes": 5})
    assert not architecture.build().training


@pytest.mark.parametrize(
    ("name", "hint"),
    [("resnet19", "Did you mean 'resnet18' or 'resnet34'"), ("hf-hub:timm/resnet18", "hub are not looked up")],
)
def test_a_name_timm_does_not_know_says_close_ones(timm, name, hint):
    with pytest.raises(ArchitectureError, match=f"timm knows no network '{name}'") as caught:
        resolve_architecture(f"timm:{name}")
    assert hint in str(caught.value)


def test_an_argument_the_network_does_not_take_is_said(timm):
    with pytest.raises(ArchitectureError, match=r"cannot build 'timm:resnet18': TypeError: .*'colour'"):
        resolve_architecture("timm:resnet18", {"colour": 1}).build()


# -- the checkpoints' own name ---------------------------------------------------------------------


def test_the_checkpoints_own_name_and_arguments_are_returned():
    origin = Origin("resnet18", {"num_classes": 3})
    assert own_architecture([("a", origin), ("b", origin)]) == ("timm:resnet18", {"num_classes": 3})


def test_a_checkpoint_that_does_not_say_what_it_is_is_named():
    with pytest.raises(ArchitectureError, match=r"member 1 \(b.pt\) does not say what its architecture is") as caught:
        own_architecture([("member 0 (a.pt)", Origin("resnet18", {})), ("member 1 (b.pt)", None)])
    assert "--model timm:NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (Origin("resnet34", {}), r"'resnet18' \(a\) with 'resnet34' \(b\)"),
        (Origin("resnet18", {"num_classes": 3}), r"'resnet18' \(a\) with 'resnet18' \(num_classes=3\) \(b\)"),
    ],
)
def test_checkpoints_of_different_networks_are_refused(other, text):
    with pytest.raises(StackError, match=f"cannot stack {text}: the checkpoints say"):
        own_architecture([("a", Origin("resnet18", {})), ("b", other)])


# -- torchvision -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "arguments", "called"),
    [
        ("resnet18", {"num_classes": 3}, (None, {"num_classes": 3})),
        ("fcn_resnet50", {"num_classes": 3}, (None, None, 3)),
        ("googlenet", {"aux_logits": False}, (None, {"init_weights": False, "aux_logits": False})),
    ],
)
def test_torchvision_is_asked_for_the_network_without_weights(torchvision, name, arguments, called):
    assert resolve_architecture(f"torchvision:{name}", arguments).build().called == called


def test_a_name_torchvision_does_not_know_says_close_ones(torchvision):
    with pytest.raises(ArchitectureError, match=r"torchvision knows no network 'resnet81'\. Did you mean 'resnet18'"):
        resolve_architecture("torchvision:resnet81")


@pytest.mark.parametrize(
    ("name", "instead"), [("resnet18", "torchvision:resnet18 instead"), ("odd", "the float network instead")]
)
def test_quantised_networks_are_refused(torchvision, name, instead):
    with pytest.raises(ArchitectureError, match=f"cannot pack 'quantized_{name}'") as caught:
        resolve_architecture(f"torchvision:quantized_{name}")
    assert instead in caught.value.hint


# -- transformers ----------------------------------------------------------------------------------


def test_a_configuration_is_built_by_its_own_class(transformers, tmp_path):
    write_config(tmp_path / "conf", model_type="tiny", architectures=["TinyForClassification"], hidden_size=16)
    net = resolve_architecture("hf:conf", {"num_labels": 7}, tmp_path).build()
    assert net.called == ("TinyForClassification", "sdpa")
    assert (net.config.hidden_size, net.config.num_labels, net.config.use_cache) == (16, 7, False)
    assert transformers.calls[-1] == {"trust_remote_code": False, "local_files_only": True}


def test_the_folder_is_relative_to_the_current_one_by_default(transformers, tmp_path, monkeypatch):
    write_config(tmp_path / "conf", model_type="tiny")
    monkeypatch.chdir(tmp_path)
    assert isinstance(resolve_architecture("hf:conf").build(), nn.Module)
    assert isinstance(resolve_architecture(f"hf:{tmp_path / 'conf'}").build(), nn.Module)


@pytest.mark.parametrize(
    ("values", "arguments", "called"),
    [
        ({"architectures": ["OldModel"]}, {}, ("OldModel", "eager")),
        ({"architectures": ["OldModel"]}, {"attn_implementation": "sdpa"}, ("OldModel", "sdpa")),
        ({"architectures": ["Unheard"]}, {}, ("TinyForClassification", "sdpa")),
        ({"architectures": ["pipeline"]}, {}, ("TinyForClassification", "sdpa")),
        ({"architectures": None}, {}, ("TinyForClassification", "sdpa")),
        ({}, {"attn_implementation": "eager", "use_cache": True}, ("TinyForClassification", "eager")),
    ],
)
def test_class_and_attention(transformers, tmp_path, values, arguments, called):
    write_config(tmp_path, model_type="tiny", **values)
    net = resolve_architecture("hf:.", arguments, tmp_path).build()
    assert net.called == called
    assert net.config.use_cache is arguments.get("use_cache", False)


def test_attention_kernels_that_a_configuration_names_are_not_looked_at(transformers, tmp_path):
    nested = {"attn_implementation": "someone/kernel", "depth": 2}
    write_config(tmp_path, model_type="tiny", _attn_implementation="someone/kernel", parts=[nested])
    net = resolve_architecture("hf:.", None, tmp_path).build()
    assert net.called[1] == "sdpa"
    assert net.config.parts == [{"depth": 2}]
    assert not hasattr(net.config, "_attn_implementation")


@pytest.mark.parametrize(
    "values",
    [
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
        {"model_type": "tiny", "architectures": ["Mine"], "auto_map": {"AutoModel": "mine.Mine"}},
    ],
    ids=["configuration", "network"],
)
def test_a_configuration_that_needs_code_is_refused(transformers, tmp_path, values):
    write_config(tmp_path, **values)
    with pytest.raises(
        ArchitectureError, match=r"refused '.*config.json': .*\('auto_map'\), which is never run"
    ) as caught:
        resolve_architecture("hf:.", None, tmp_path)
    assert "--model path/to/model.py:factory" in caught.value.hint


def test_code_that_transformers_has_itself_is_not_needed(transformers, tmp_path):
    write_config(tmp_path, model_type="tiny", architectures=["OldModel"], auto_map={"AutoModel": "mine.Mine"})
    assert resolve_architecture("hf:.", None, tmp_path).build().called[0] == "OldModel"


@pytest.mark.parametrize("values", [{"trust_remote_code": True}, {"parts": [{"trust_remote_code": True}]}])
def test_a_configuration_that_asks_for_trust_is_refused(transformers, tmp_path, values):
    write_config(tmp_path, model_type="tiny", **values)
    with pytest.raises(ArchitectureError, match="asks for code to be trusted"):
        resolve_architecture("hf:.", None, tmp_path)


def test_an_unknown_model_type_says_close_ones(transformers, tmp_path):
    write_config(tmp_path, model_type="tinny")
    with pytest.raises(ArchitectureError, match=r"knows no model_type 'tinny' .*Did you mean 'tiny'"):
        resolve_architecture("hf:.", None, tmp_path)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_lables": 3}, ArchitectureError, "Config has no 'num_lables'. Did you mean 'num_labels'"),
        ({"attn_implementation": "someone/kernel"}, UsageError, "expected 'sdpa' or 'eager'"),
    ],
)
def test_arguments_a_configuration_does_not_take(transformers, tmp_path, arguments, error, text):
    write_config(tmp_path, model_type="tiny")
    with pytest.raises(error, match=text):
        resolve_architecture("hf:.", arguments, tmp_path).build()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "cannot read '.*config.json': Expecting"),
        ("[]", "is no configuration of transformers"),
        ('{"model_type": "tiny", "architectures": "Tiny"}', "is no configuration of transformers"),
    ],
)
def test_a_damaged_configuration_is_refused(transformers, tmp_path, text, problem):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ArchitectureError, match=problem):
        resolve_architecture("hf:.", None, tmp_path)


def test_a_folder_without_a_configuration_says_what_is_there(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ArchitectureError, match=r"has no config\.json: saw model\.safetensors"):
        resolve_architecture("hf:.", None, tmp_path)
    with pytest.raises(ArchitectureError, match="google/bert': it is no folder") as caught:
        resolve_architecture("hf:google/bert", None, tmp_path)
    assert "hub are not looked up" in caught.value.hint


def test_builds_share_no_tensors(transformers, tmp_path):
    write_config(tmp_path, model_type="tiny")
    architecture = resolve_architecture("hf:.", None, tmp_path)
    first, second = architecture.build(), architecture.build()
    assert first.config is not second.config
    with torch.no_grad():
        first.weight.zero_()
    assert second.weight.any()
