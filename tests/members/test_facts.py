import argparse
import json
import math
import os

import numpy as np
import pytest
import torch

from ensexport.members.facts import Facts, read_facts, read_folder_facts

STATE = {"w": torch.zeros(3), "bn.num_batches_tracked": torch.tensor(5)}


def test_timm():
    content = {
        "epoch": 12,
        "arch": "resnet18",
        "state_dict": STATE,
        "state_dict_ema": STATE,
        "optimizer": {"state": {0: {"step": torch.tensor(9.0)}}, "param_groups": [{"lr": 0.1}]},
        "version": 2,
        "args": argparse.Namespace(model="resnet18", seed=42, opt_betas=None, mean=(0.5, 0.5)),
        "amp_scaler": {"scale": 65536.0},
        "metric": 80.5,
    }
    assert read_facts(content) == Facts(
        epoch=12,
        metrics={"metric": 80.5},
        hyper_parameters={
            "arch": "resnet18",
            "version": 2,
            "args.model": "resnet18",
            "args.seed": 42,
            "args.opt_betas": None,
            "args.mean.0": 0.5,
            "args.mean.1": 0.5,
        },
    )


def test_lightning():
    callback = {"monitor": "val_loss", "best_model_score": torch.tensor(0.25), "best_model_path": "x.ckpt"}
    content = {
        "epoch": 9,
        "global_step": 1000,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": STATE,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint{'monitor': 'val_loss'}": callback, "EarlyStopping": {"wait_count": 2}},
        "optimizer_states": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"width": 128, "layers": [2, 2], "act": "relu"},
    }
    facts = read_facts(content)
    assert (facts.epoch, facts.step, facts.metrics) == (9, 1000, {"val_loss": 0.25})
    assert facts.hyper_parameters == {
        "pytorch-lightning_version": "2.5.0",
        "hparams_name": "kwargs",
        "hyper_parameters.width": 128,
        "hyper_parameters.act": "relu",
        "hyper_parameters.layers.0": 2,
        "hyper_parameters.layers.1": 2,
    }


def test_nnunet():
    content = {
        "network_weights": STATE,
        "logging": {"ema_fg_dice": [0.1, 0.9]},
        "_best_ema": np.float64(0.91),
        "current_epoch": 1000,
        "init_args": {"fold": 3, "configuration": "3d_fullres", "plans": {"name": "p"}},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    facts = read_facts(content)
    assert (facts.epoch, facts.step, facts.metrics) == (1000, None, {"_best_ema": 0.91})
    assert facts.hyper_parameters == {
        "trainer_name": "nnUNetTrainer",
        "init_args.fold": 3,
        "init_args.configuration": "3d_fullres",
        "init_args.plans.name": "p",
    }


def test_torchvision_ultralytics_mmengine_and_detectron2():
    vision = read_facts(
        {"model": STATE, "lr_scheduler": {"last_epoch": 7}, "epoch": 7, "args": argparse.Namespace(lr=1)}
    )
    assert vision == Facts(epoch=7, hyper_parameters={"args.lr": 1})
    metrics = {"metrics/mAP50(B)": 0.5, "fitness": 0.4}
    yolo = read_facts({"epoch": -1, "best_fitness": 0.4, "train_args": {"imgsz": 640}, "train_metrics": metrics})
    assert yolo.epoch is None
    assert yolo.metrics == {
        "best_fitness": 0.4,
        "train_metrics.metrics/mAP50(B)": 0.5,
        "train_metrics.fitness": 0.4,
    }
    mm = read_facts({"meta": {"epoch": 3, "iter": 99, "seed": 7}, "state_dict": STATE, "message_hub": {}})
    assert (mm.epoch, mm.step, mm.hyper_parameters["meta.seed"]) == (3, 99, 7)
    assert read_facts({"model": STATE, "iteration": 269999}).step == 269999


def test_plain_scripts():
    content = {
        "model_state_dict": STATE,
        "epoch": torch.tensor(3),
        "val_loss": np.float32(0.5),
        "width": 64,
        "loss": "ce",
    }
    assert read_facts(content) == Facts(
        epoch=3, metrics={"val_loss": 0.5}, hyper_parameters={"width": 64, "loss": "ce"}
    )


@pytest.mark.parametrize(
    "content", [STATE, {}, [], None, 5, "epoch", torch.zeros(3), object()], ids=lambda c: type(c).__name__
)
def test_what_says_nothing(content):
    assert read_facts(content) == Facts()


def test_hostile_content_is_bounded_and_raises_nothing():
    class Trap(dict):
        __iter__ = __len__ = __getitem__ = items = keys = get = lambda *_: 1 / 0

    ring = {"a": 1}
    ring["self"] = ring["hyper_parameters"] = ring["callbacks"] = ring["metrics"] = ring["meta"] = ring
    assert read_facts(ring).hyper_parameters["hyper_parameters.self.a"] == 1
    assert read_facts(Trap()) == Facts()
    content = {
        "epoch": "three",
        "step": math.nan,
        "metric": math.nan,
        "callbacks": {"x" * 10**6: {"best_model_score": 1, "monitor": "m" * 10**6}, "y": Trap(), "z": [5]},
        "metrics": dict.fromkeys(map(str, range(10**5)), 1.0),
        "args": {"text": "t" * 10**6, "wide": [1] * 10**6, "evil": Trap()},
        "hparams": {"n" * 10**5: {}, "big": 10**6000},
        (1, 2): 3,
    } | {f"option_{i}": i for i in range(30_000)}
    facts = read_facts(content)
    assert facts.epoch is None
    assert facts.step is None
    assert math.isnan(facts.metrics["metric"])
    assert len(facts.metrics) <= 52
    assert len(facts.hyper_parameters) <= 2000
    assert len(json.dumps([dict(facts.metrics), dict(facts.hyper_parameters)])) < 500_000


def test_a_folder_of_the_trainer(tmp_path):
    state = {"best_metric": 0.91, "epoch": 2.5, "global_step": 500, "log_history": [{"loss": 1}], "max_steps": 600}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    assert read_folder_facts(tmp_path) == Facts(epoch=2.5, step=500, metrics={"best_metric": 0.91})
    (tmp_path / "trainer_state.json").write_text(json.dumps({"best_metric": None, "epoch": 3.0}))
    facts = read_folder_facts(str(tmp_path))
    assert facts == Facts(epoch=3)
    assert isinstance(facts.epoch, int)


@pytest.mark.parametrize("text", [None, "", "[1]", "{", "[" * 10**5, '{"epoch": "x", "best_metric": {}}'], ids=repr)
def test_a_folder_that_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text)
    assert read_folder_facts(tmp_path) == Facts()


def test_a_pipe_in_the_place_of_the_file_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "trainer_state.json")
    assert read_folder_facts(tmp_path) == Facts()
