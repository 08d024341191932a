"""Checkpoints as the tools write them: by the tool itself where it can be installed, else with its exact keys.

Each writer takes `(folder, module, index)`, puts one member below `folder` and returns what a user would name: the
file, or the folder. Where a tool saves averaged and raw weights, `module` holds the averaged ones and the raw ones are
one more in every float.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as torch_dcp
from safetensors.torch import save_file
from torch import nn

from ensexport.stacking import stack

Writer = Callable[[Path, nn.Module, int], Path]
EnsembleWriter = Callable[[Path, Sequence[nn.Module]], Path]


@dataclass(frozen=True)
class Layout:
    """How one tool writes a member.

    Attributes:
        write: Its writer.
        container_key: The key that the weights lie under; None if there is none.
        prefix: What stands before every name; None if nothing does.
        needs: Libraries that the writer imports; a test skips without them.
        asks_for_code: The file can be read with `--allow-pickle` only.
        kind: What `member_folder` says of the returned path; None for a file.
    """

    write: Writer
    container_key: str | None = None
    prefix: str | None = None
    needs: tuple[str, ...] = ()
    asks_for_code: bool = False
    kind: str | None = None


def raw_of(module: nn.Module) -> nn.Module:
    """A copy whose floats are one more: the weights that an average was taken of."""
    raw = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in raw.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(1)
    return raw


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    """An optimizer that has made a step of no length, so that it has a state."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=0.0)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def run_folder(folder: Path, *parts: str) -> Path:
    path = folder.joinpath(*parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


def save(obj: Any, path: Path) -> Path:
    torch.save(obj, path)
    return path


# -- torch itself ----------------------------------------------------------------------------------


def plain(folder: Path, module: nn.Module, index: int) -> Path:
    return save(module.state_dict(), folder / f"model_{index}.pt")


def tutorial(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: PyTorch tutorials, "Saving and loading models", section "Saving a general checkpoint"."""
    found = {"epoch": 5, "model_state_dict": module.state_dict(), "loss": 0.4}
    found["optimizer_state_dict"] = optimizer_of(module).state_dict()
    return save(found, run_folder(folder, f"seed_{index}") / "checkpoint.pt")


def safetensors(folder: Path, module: nn.Module, index: int) -> Path:
    path = folder / f"model_{index}.safetensors"
    save_file(module.state_dict(), path, metadata={"format": "pt"})
    return path


def data_parallel(folder: Path, module: nn.Module, index: int) -> Path:
    """DDP and DataParallel put the same prefix; DDP needs a process group."""
    return save(nn.DataParallel(module).state_dict(), folder / f"ddp_{index}.pt")


def compiled(folder: Path, module: nn.Module, index: int) -> Path:
    return save(torch.compile(module).state_dict(), folder / f"compiled_{index}.pt")


def compiled_inside(folder: Path, module: nn.Module, index: int) -> Path:
    """Each child compiled by itself: the prefix stands within the names."""
    outer = copy.deepcopy(module)
    for name, child in list(outer.named_children()):
        outer._modules[name] = torch.compile(child)
    return save(outer.state_dict(), folder / f"children_{index}.pt")


def compiled_data_parallel(folder: Path, module: nn.Module, index: int) -> Path:
    return save(nn.DataParallel(torch.compile(module)).state_dict(), folder / f"both_{index}.pt")


def distributed(folder: Path, module: nn.Module, index: int) -> Path:
    """`torch.distributed.checkpoint.save`, with the optimizer and a number beside the weights."""
    path = folder / f"seed_{index}"
    state = {"model": module.state_dict(), "optim": optimizer_of(module).state_dict(), "step": 7}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves from one process
        torch_dcp.save(state, checkpoint_id=path, no_dist=True)
    return path


def whole_module(folder: Path, module: nn.Module, index: int) -> Path:
    return save(module, folder / f"module_{index}.pt")


# -- trainers --------------------------------------------------------------------------------------


def timm(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: timm 1.0.31 train.py and utils/checkpoint_saver.py."""
    from timm.utils import CheckpointSaver, ModelEmaV3

    run = run_folder(folder, f"seed_{index}")
    raw = raw_of(module)
    average = ModelEmaV3(raw, decay=0.999)
    average.module.load_state_dict(module.state_dict())
    options = argparse.Namespace(model="resnet10t", num_classes=3, lr=0.1, data_dir="imagenet")
    saver = CheckpointSaver(
        model=raw, optimizer=optimizer_of(raw), args=options, model_ema=average, checkpoint_dir=str(run), max_history=2
    )
    for epoch in (0, 1):
        saver.save_checkpoint(epoch, metric=50.0 + epoch)
    return run / "model_best.pth.tar"


def lightning(folder: Path, module: nn.Module, index: int) -> Path:
    """`Trainer.save_checkpoint` of a LightningModule that holds the network as `model`."""
    from lightning.pytorch import LightningModule, Trainer

    class Wrapped(LightningModule):  # type: ignore[misc]
        def __init__(self, width: int) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = module

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer_of(self.model)

    run = run_folder(folder, "lightning_logs", f"version_{index}", "checkpoints")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # remarks on cores, loggers and devices
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False
        )
        trainer.strategy.connect(Wrapped(width=8))
        trainer.save_checkpoint(run / "epoch=9-step=1000.ckpt")
    return run / "epoch=9-step=1000.ckpt"


def lightning_by_hand(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: lightning 2.6.6 pytorch/trainer/connectors/checkpoint_connector.py (dump_checkpoint)."""
    run = run_folder(folder, "lightning_logs", f"version_{index}", "checkpoints")
    found = {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": OrderedDict((f"model.{name}", tensor) for name, tensor in module.state_dict().items()),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 10}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.1), "kth_value": None}
        },
        "optimizer_states": [optimizer_of(module).state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 8, "lr": 1e-3},
    }
    return save(found, run / "last.ckpt")


def nnunet(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: nnU-Net v2 nnunetv2/training/nnUNetTrainer/nnUNetTrainer.py (save_checkpoint)."""
    plans, dataset = {"plans_name": "nnUNetPlans"}, {"labels": {"background": 0, "tumour": 1}, "numTraining": 4}
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(dataset))
    found = {
        "network_weights": module.state_dict(),
        "optimizer_state": optimizer_of(module).state_dict(),
        "grad_scaler_state": {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "_growth_tracker": 0},
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float64(0.75)], "lrs": [0.01], "epoch_end_timestamps": [1.5]},
        "_best_ema": np.float64(0.7),
        "current_epoch": 1000,
        "init_args": {
            "plans": plans, "configuration": "3d_fullres", "fold": index, "dataset_json": dataset,
            "unpack_dataset": True, "device": torch.device("cpu"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }  # fmt: skip
    return save(found, run_folder(folder, f"fold_{index}") / "checkpoint_final.pth")


def torchvision(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: torchvision references/classification/train.py and utils.py (ExponentialMovingAverage)."""
    raw = raw_of(module)
    average = torch.optim.swa_utils.AveragedModel(raw, use_buffers=True)
    average.module.load_state_dict(module.state_dict())
    found = {
        "model": raw.state_dict(),
        "optimizer": optimizer_of(raw).state_dict(),
        "lr_scheduler": {"step_size": 30, "last_epoch": 1, "_last_lr": [0.1]},
        "epoch": 89,
        "args": argparse.Namespace(model="resnet18", batch_size=32, lr=0.1, model_ema=True),
        "model_ema": average.state_dict(),
    }
    return save(found, run_folder(folder, f"seed_{index}") / "model_89.pth")


def mmengine(folder: Path, module: nn.Module, index: int) -> Path:
    """What a training run writes, logs as objects of mmengine's own class. `state_dict` holds the averaged weights.

    Source: mmengine 0.10 runner/runner.py (save_checkpoint), logging/message_hub.py and history_buffer.py,
    hooks/ema_hook.py (_swap_ema_state_dict).
    """
    with _module_of_mmengine() as history_buffer:
        logs = {"train/loss": history_buffer(np.array([0.5, 0.25]), np.array([1, 1]))}
        found = {
            **_of_mmengine(module),
            "message_hub": _message_hub(logs),
            "optimizer": optimizer_of(module).state_dict(),
        }
        return save(found, run_folder(folder, f"work_dir_{index}") / "epoch_12.pth")


def mmengine_published(folder: Path, module: nn.Module, index: int) -> Path:
    """What `tools/misc/publish_model.py` makes of it: no optimizer and no logs."""
    return save(_of_mmengine(module), run_folder(folder, f"work_dir_{index}") / "best_acc_epoch_10.pth")


def _of_mmengine(module: nn.Module) -> dict[str, Any]:
    raw = raw_of(module)
    return {
        "meta": {"epoch": 12, "iter": 1200, "cfg": "model = dict()", "seed": 0, "time": "20260101_000000"},
        "state_dict": module.state_dict(),
        "ema_state_dict": OrderedDict(
            [("steps", torch.tensor(1200)), *((f"module.{name}", tensor) for name, tensor in raw.state_dict().items())]
        ),
    }


def _message_hub(log_scalars: dict[str, Any]) -> dict[str, Any]:
    return {
        "log_scalars": OrderedDict(log_scalars),
        "runtime_info": OrderedDict(epoch=12),
        "resumed_keys": OrderedDict(),
    }


@contextlib.contextmanager
def _module_of_mmengine() -> Iterator[type]:
    """Let a class be pickled under the name of mmengine's."""

    def fill(self: Any, log_history: Any, count_history: Any) -> None:
        self.max_length, self._log_history, self._count_history = 1_000_000, log_history, count_history

    name = "mmengine.logging.history_buffer"
    found = type("HistoryBuffer", (), {"__module__": name, "__init__": fill})
    names = ["mmengine", "mmengine.logging", name]
    for part in names:
        sys.modules[part] = types.ModuleType(part)
    sys.modules[name].HistoryBuffer = found  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        for part in names:
            del sys.modules[part]


def detectron2(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: fvcore common/checkpoint.py (Checkpointer.save) and detectron2 engine/defaults.py."""
    found = {
        "model": module.state_dict(),
        "trainer": {"iteration": 89999, "optimizer": optimizer_of(module).state_dict()},
        "iteration": 89999,
    }
    run = run_folder(folder, f"output_{index}")
    (run / "last_checkpoint").write_text("model_final.pth")
    return save(found, run / "model_final.pth")


def ultralytics(folder: Path, module: nn.Module, index: int) -> Path:
    """A pickled module in half precision. Source: ultralytics 8.3 engine/trainer.py (save_model)."""
    found = {
        "epoch": 99,
        "best_fitness": np.float64(0.5),
        "model": None,
        "ema": copy.deepcopy(module).half(),
        "updates": 1000,
        "optimizer": optimizer_of(module).state_dict(),
        "train_args": {"task": "detect", "imgsz": 640},
        "date": "2026-01-01T00:00:00",
        "version": "8.3.0",
    }
    return save(found, run_folder(folder, f"train{index}", "weights") / "best.pt")


# -- folders ---------------------------------------------------------------------------------------


def transformers(folder: Path, module: Any, index: int) -> Path:
    """`save_pretrained` of a transformers model, see `tiny_bert`."""
    path = folder / f"run_{index}"
    module.save_pretrained(path)
    return path


def transformers_sharded(folder: Path, module: Any, index: int) -> Path:
    path = folder / f"run_{index}"
    module.save_pretrained(path, max_shard_size="2KB")
    return path


def huggingface(folder: Path, module: nn.Module, index: int) -> Path:
    """The last checkpoint of a transformers Trainer. Source: transformers 5.23.0 trainer.py."""
    run = run_folder(folder, f"run_{index}", "checkpoint-500")
    (run / "config.json").write_text('{"architectures": ["Net"]}')
    save_file(module.state_dict(), run / "model.safetensors", metadata={"format": "pt"})
    save(optimizer_of(module).state_dict(), run / "optimizer.pt")
    save({"last_epoch": 500}, run / "scheduler.pt")
    save({"python": [1, 2], "cpu": torch.get_rng_state()}, run / "rng_state.pth")
    save(argparse.Namespace(learning_rate=1e-4), run / "training_args.bin")
    (run / "trainer_state.json").write_text('{"global_step": 500}')
    return run


def huggingface_torch(folder: Path, module: nn.Module, index: int) -> Path:
    """As transformers wrote it before safetensors."""
    run = run_folder(folder, f"run_{index}")
    (run / "config.json").write_text('{"architectures": ["Net"]}')
    save(module.state_dict(), run / "pytorch_model.bin")
    return run


def sharded_safetensors(folder: Path, module: nn.Module, index: int) -> Path:
    """Source: huggingface_hub serialization/_torch.py (the names of the shards, `weight_map`)."""
    run = run_folder(folder, f"run_{index}")
    return _write_shards(run, module, "model{}.safetensors", lambda part, path: save_file(part, path, {"format": "pt"}))


def sharded_torch(folder: Path, module: nn.Module, index: int) -> Path:
    """As transformers and zero_to_fp32.py write it."""
    run = run_folder(folder, f"run_{index}")
    return _write_shards(run, module, "pytorch_model{}.bin", torch.save)


def _write_shards(run: Path, module: nn.Module, pattern: str, write: Callable[[Any, Path], Any]) -> Path:
    state = module.state_dict()
    names = list(state)
    half = len(names) // 2
    weight_map = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        shard = pattern.format(f"-{number:05}-of-00002")
        write({name: state[name] for name in part}, run / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {"total_size": sum(t.nbytes for t in state.values())}, "weight_map": weight_map}
    (run / (pattern.format("") + ".index.json")).write_text(json.dumps(index, indent=2, sort_keys=True))
    return run


def accelerate(folder: Path, module: nn.Module, index: int) -> Path:
    """`Accelerator.save_state` with a prepared model and optimizer."""
    from accelerate import Accelerator

    run = run_folder(folder, f"run_{index}", "checkpoint_0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accelerator = Accelerator(cpu=True)
        accelerator.prepare(module, optimizer_of(module))
        accelerator.save_state(str(run))
        accelerator.free_memory()
    return run


def fsdp(folder: Path, module: nn.Module, index: int) -> Path:
    """A step of accelerate with FSDP. Source: accelerate 1.15.0 utils/fsdp_utils.py (save_fsdp_model, _optimizer)."""
    run = run_folder(folder, f"run_{index}", "checkpoint-500")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that it saves from one process
        torch_dcp.save({"model": module.state_dict()}, checkpoint_id=run / "pytorch_model_fsdp_0", no_dist=True)
        state = {"optimizer": optimizer_of(module).state_dict()}
        torch_dcp.save(state, checkpoint_id=run / "optimizer_0", no_dist=True)
    save({"last_epoch": 500}, run / "scheduler.pt")
    return run


def deepspeed(folder: Path, module: nn.Module, index: int) -> Path:
    """ZeRO-1 and 2. Source: DeepSpeed runtime/engine.py (_save_checkpoint)."""
    run = run_folder(folder, f"run_{index}")
    return _write_deepspeed(run, module.state_dict(), module, "mp_rank_00_model_states.pt")


def deepspeed_zero3(folder: Path, module: nn.Module, index: int) -> Path:
    """Weights that each rank holds a piece of: refused, with what to do."""
    run = run_folder(folder, f"run_{index}")
    empty = OrderedDict((name, torch.empty(0, dtype=tensor.dtype)) for name, tensor in module.state_dict().items())
    return _write_deepspeed(run, empty, module, "zero_pp_rank_0_mp_rank_00_model_states.pt")


def _write_deepspeed(run: Path, weights: Any, module: nn.Module, name: str) -> Path:
    step = run_folder(run, "global_step500")
    found = {
        "module": weights,
        "buffer_names": [name for name, _ in module.named_buffers()],
        "optimizer": None,
        "param_shapes": [OrderedDict((name, value.shape) for name, value in module.named_parameters())],
        "frozen_param_shapes": None,
        "shared_params": {},
        "lr_scheduler": None,
        "data_sampler": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": 500,
        "global_samples": 8000,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.17.1",
    }
    save(found, step / name)
    save({"optimizer_state_dict": {}, "ds_version": "0.17.1"}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (run / "latest").write_text("global_step500")
    (run / "zero_to_fp32.py").write_text("# DeepSpeed's script\n")
    return run


LAYOUTS: dict[str, Layout] = {
    "plain": Layout(plain),
    "tutorial": Layout(tutorial, "model_state_dict"),
    "safetensors": Layout(safetensors),
    "data-parallel": Layout(data_parallel, prefix="module."),
    "compiled": Layout(compiled, prefix="_orig_mod."),
    "compiled-inside": Layout(compiled_inside),
    "compiled-data-parallel": Layout(compiled_data_parallel, prefix="module._orig_mod."),
    "distributed": Layout(distributed, "model", kind="dcp"),
    "whole-module": Layout(whole_module, asks_for_code=True),
    "timm": Layout(timm, "state_dict_ema", needs=("timm",)),
    "lightning": Layout(lightning, "state_dict", "model.", needs=("lightning",)),
    "lightning-by-hand": Layout(lightning_by_hand, "state_dict", "model."),
    "nnunet": Layout(nnunet, "network_weights"),
    "torchvision": Layout(torchvision, "model_ema", "module."),
    "mmengine": Layout(mmengine, "state_dict", asks_for_code=True),
    "mmengine-published": Layout(mmengine_published, "state_dict"),
    "detectron2": Layout(detectron2, "model"),
    "ultralytics": Layout(ultralytics, "ema", asks_for_code=True),
    "transformers": Layout(transformers, needs=("transformers",), kind="hf"),
    "transformers-sharded": Layout(transformers_sharded, needs=("transformers",), kind="sharded-safetensors"),
    "huggingface": Layout(huggingface, kind="hf"),
    "huggingface-torch": Layout(huggingface_torch, kind="hf"),
    "sharded-safetensors": Layout(sharded_safetensors, kind="sharded-safetensors"),
    "sharded-torch": Layout(sharded_torch, kind="sharded-torch"),
    "accelerate": Layout(accelerate, needs=("accelerate",), kind="hf"),
    "fsdp": Layout(fsdp, "model", kind="dcp"),
    "deepspeed": Layout(deepspeed, "module", kind="deepspeed"),
}
"""All forms of one member that can be read, by name. `deepspeed_zero3` is not among them."""


# -- many members in one file ----------------------------------------------------------------------


def _prefixed(prefix: str) -> EnsembleWriter:
    def write(folder: Path, modules: Sequence[nn.Module]) -> Path:
        states = [module.state_dict() for module in modules]
        found = {prefix.format(k) + name: tensor for k, state in enumerate(states) for name, tensor in state.items()}
        return save(found, folder / "ensemble.pth")

    return write


def module_list(folder: Path, modules: Sequence[nn.Module]) -> Path:
    return save(nn.ModuleList(modules).state_dict(), folder / "ensemble.pth")


def stacked(folder: Path, modules: Sequence[nn.Module]) -> Path:
    """What `ensexport.stack(...).state_dict()` holds: every tensor has the members in front."""
    return save(stack(list(modules)).state_dict(), folder / "stacked.pt")


ENSEMBLES: dict[str, EnsembleWriter] = {
    "module-list": module_list,  # {k}.
    "torchensemble": _prefixed("estimators_.{}."),
    "torch-uncertainty": _prefixed("core_models.{}."),
    "models": _prefixed("models.{}."),
    "members": _prefixed("members.{}."),
    "stacked": stacked,
}
"""All forms of several members in one file.

Source: TorchEnsemble (`estimators_`), torch-uncertainty (`core_models`).
"""


# -- networks --------------------------------------------------------------------------------------


def tiny_net(seed: int) -> nn.Module:
    """A small network with a convolution, batch norm and its counter, and a linear layer."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3))
    for name in ("running_mean", "running_var"):
        getattr(net[1], name).uniform_(0.5, 1.5)
    return net


def tiny_bert(seed: int) -> nn.Module:
    """A BERT of a few thousand parameters, for the writers of transformers."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8,
    )  # fmt: skip
    return BertModel(config)
