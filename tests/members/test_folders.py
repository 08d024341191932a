import os
from pathlib import Path

import pytest

from ensexport.errors import CheckpointError, IncompleteCheckpointError
from ensexport.members.folders import auxiliary_reason, member_folder

OPTIMIZER = "optimizer state, no weights"


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def files(found, folder):
    return [str(path.relative_to(folder)) for path in found.files]


def reasons(found, folder):
    return {str(Path(item.path).relative_to(folder)): item.reason for item in found.skipped}


# -- one file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (["config.json", "model.safetensors"], "model.safetensors"),
        (["config.json", "pytorch_model.bin"], "pytorch_model.bin"),
        (["pytorch_model.bin"], "pytorch_model.bin"),
        (["model.safetensors", "optimizer.bin", "scheduler.bin", "random_states_0.pkl"], "model.safetensors"),
        (["config.json", "model.safetensors", "pytorch_model.bin", "other.pt"], "model.safetensors"),
        (["config.json", "model.safetensors", "model.safetensors.index.json"], "model.safetensors"),
        (["config.json", "model.safetensors", "adapter_config.json"], "model.safetensors"),
        (
            ["config.json", "model.safetensors", "latest", "global_step5/mp_rank_00_model_states.pt"],
            "model.safetensors",
        ),
    ],
    ids=["hf", "hf bin", "bin alone", "accelerate", "both", "index too", "adapter too", "deepspeed too"],
)
def test_a_folder_with_whole_weights_is_one_member(tmp_path, names, taken):
    found = member_folder(fill(tmp_path, *names))
    assert found.kind == "hf"
    assert found.source == tmp_path / taken
    assert files(found, tmp_path) == [taken]
    assert sorted([taken, *reasons(found, tmp_path)]) == sorted({name.split("/")[0] for name in names})
    assert all(reasons(found, tmp_path).values())


def test_everything_else_is_skipped_with_its_reason(tmp_path):
    fill(tmp_path, "config.json", "model.safetensors", "pytorch_model.bin", "optimizer.pt", "rng_state_3.pth")
    fill(tmp_path, "training_args.bin", "adapter_model.safetensors", "checkpoint-500/model.safetensors", "README.md")
    os.mkfifo(tmp_path / "pipe")
    assert reasons(member_folder(tmp_path), tmp_path) == {
        "config.json": "no weights",
        "README.md": "no weights",
        "pytorch_model.bin": "another form of weights: the member's are 'model.safetensors'",
        "adapter_model.safetensors": "an adapter: the member's weights are 'model.safetensors'",
        "optimizer.pt": OPTIMIZER,
        "rng_state_3.pth": "random number state, no weights",
        "training_args.bin": "training options, no weights",
        "checkpoint-500": "sub-folder of a folder that is one member: name it to take what it holds",
        "pipe": "not a regular file",
    }


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a.pt", "b.pt"],
        ["model.safetensors"],
        ["model.safetensors", "fold_1.safetensors", "optimizer.pt"],
        ["pytorch_model.bin", "seed_1.pt"],
        ["config.json", "m.safetensors"],
        ["config.json"],
        ["latest"],
    ],
    ids=["empty", "flat", "one file", "flat with optimizer", "flat with bin", "other name", "config", "latest"],
)
def test_other_folders_are_not_one_member(tmp_path, names):
    assert member_folder(fill(tmp_path, *names)) is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("optimizer.pt", OPTIMIZER),
        ("optimizer.bin", OPTIMIZER),
        ("optimizer_1.bin", OPTIMIZER),
        ("bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", OPTIMIZER),
        ("scheduler.pt", "learning-rate schedule, no weights"),
        ("scheduler.bin", "learning-rate schedule, no weights"),
        ("scaler.pt", "state of the gradient scaler, no weights"),
        ("rng_state.pth", "random number state, no weights"),
        ("rng_state_0.pth", "random number state, no weights"),
        ("random_states_0.pkl", "random number state, no weights"),
        ("training_args.bin", "training options, no weights"),
        ("model.pt", ""),
        ("my_optimizer.pt", ""),
        ("optimizer_best.pt", ""),
    ],
)
def test_files_without_weights_are_known_by_their_names(name, reason):
    assert auxiliary_reason(name) == reason


def test_what_zero_to_fp32_writes_into_a_folder_is_taken(tmp_path):
    fill(tmp_path, "pytorch_model.bin/pytorch_model.bin", "latest", "global_step5/zero_pp_rank_0_x_model_states.pt")
    found = member_folder(tmp_path)
    assert (found.kind, found.source) == ("hf", tmp_path / "pytorch_model.bin" / "pytorch_model.bin")
    assert sorted(reasons(found, tmp_path)) == ["global_step5", "latest"]


# -- shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "index", "shards"),
    [
        (
            "sharded-safetensors",
            "model.safetensors.index.json",
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            "sharded-torch",
            "pytorch_model.bin.index.json",
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
    ],
)
def test_shards_with_an_index_are_one_member(tmp_path, kind, index, shards):
    found = member_folder(fill(tmp_path, index, *shards, "config.json", "optimizer.pt", "x-00001-of-00001.bin"))
    assert (found.kind, found.source) == (kind, tmp_path / index)
    assert files(found, tmp_path) == [index, *shards]
    assert reasons(found, tmp_path) == {
        "config.json": "no weights",
        "optimizer.pt": OPTIMIZER,
        "x-00001-of-00001.bin": f"another form of weights: the member's are '{index}'",
    }


def test_of_several_indexes_the_usual_one_is_taken_else_none(tmp_path):
    fill(tmp_path, "a.safetensors.index.json", "b.safetensors.index.json")
    with pytest.raises(CheckpointError, match=r"2 sets of shards: a\.safetensors\.index\.json, b\.saf.* own"):
        member_folder(tmp_path)
    fill(tmp_path, "model.safetensors.index.json", "pytorch_model.bin.index.json")
    found = member_folder(tmp_path)
    assert found.source.name == "model.safetensors.index.json"
    assert len(found.skipped) == 3


def test_shards_without_their_index_are_refused(tmp_path):
    fill(tmp_path, "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    with pytest.raises(IncompleteCheckpointError, match=r"model-00001-of-00002.* without their index.*index too"):
        member_folder(tmp_path)


# -- torch.distributed.checkpoint ------------------------------------------------------------------


def test_a_distributed_checkpoint_is_one_member(tmp_path):
    found = member_folder(fill(tmp_path / "epoch=1.ckpt", ".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"))
    assert (found.kind, found.source) == ("dcp", tmp_path / "epoch=1.ckpt")
    assert files(found, found.source) == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert reasons(found, found.source) == {"meta.pt": "the trainer's state, no weights"}


def test_accelerates_folder_with_a_distributed_checkpoint_in_it_is_one_member(tmp_path):
    for name in ("pytorch_model_fsdp_0", "optimizer_0"):
        fill(tmp_path / name, ".metadata", "__0_0.distcp")
    fill(tmp_path, "scheduler.pt", "trainer_state.json")
    found = member_folder(tmp_path)
    assert (found.kind, found.source) == ("dcp", tmp_path / "pytorch_model_fsdp_0")
    assert reasons(found, tmp_path) == {
        "optimizer_0": OPTIMIZER,
        "scheduler.pt": "learning-rate schedule, no weights",
        "trainer_state.json": "training log, no weights",
    }
    assert member_folder(tmp_path / "optimizer_0") is None
    fill(tmp_path / "pytorch_model_fsdp_1", ".metadata", "__0_0.distcp")
    with pytest.raises(CheckpointError, match="holds 2 models: pytorch_model_fsdp_0, pytorch_model_fsdp_1"):
        member_folder(tmp_path)


def test_a_distributed_checkpoint_without_its_table_is_refused(tmp_path):
    with pytest.raises(IncompleteCheckpointError, match=r"\(__0_0\.distcp\) without their table: .*'\.metadata'"):
        member_folder(fill(tmp_path, "__0_0.distcp"))


def test_a_link_to_the_folder_itself_ends(tmp_path):
    (tmp_path / "pytorch_model_fsdp_0").symlink_to(".")
    (tmp_path / "pytorch_model.bin").symlink_to(".")
    (tmp_path / "global_step1").symlink_to(".")
    assert member_folder(tmp_path) is None


# -- DeepSpeed -------------------------------------------------------------------------------------


STATES = "mp_rank_00_model_states.pt"


def test_a_deepspeed_step_is_one_member(tmp_path):
    fill(tmp_path, STATES, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    found = member_folder(tmp_path)
    assert (found.kind, found.source) == ("deepspeed", tmp_path / STATES)
    assert reasons(found, tmp_path) == {"bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": OPTIMIZER}


def test_the_step_that_latest_names_is_taken(tmp_path):
    fill(tmp_path, f"global_step5/{STATES}", f"global_step10/{STATES}", "zero_to_fp32.py", "other/x")
    (tmp_path / "latest").write_text("global_step10\n")
    found = member_folder(tmp_path)
    assert (found.kind, found.source) == ("deepspeed", tmp_path / "global_step10" / STATES)
    assert reasons(found, tmp_path) == {
        "global_step5": "another step of the same run",
        "latest": "names the step, no weights",
        "other": "sub-folder of a folder that is one member: name it to take what it holds",
        "zero_to_fp32.py": "no weights",
    }


@pytest.mark.parametrize("latest", [b"checkpoint", b"pytorch_model\n"], ids=["lightning", "accelerate"])
def test_the_step_may_have_any_name(tmp_path, latest):
    fill(tmp_path, f"{latest.decode().strip()}/{STATES}")
    (tmp_path / "latest").write_bytes(latest)
    assert member_folder(tmp_path).source == tmp_path / latest.decode().strip() / STATES


def test_one_step_needs_no_latest(tmp_path):
    assert member_folder(fill(tmp_path, f"global_step5/{STATES}")).source == tmp_path / "global_step5" / STATES


@pytest.mark.parametrize("latest", [b"global_step7", b"../global_step5", b"\xff", None])
def test_several_steps_need_a_latest_that_names_one(tmp_path, latest):
    fill(tmp_path, f"global_step5/{STATES}", f"global_step10/{STATES}")
    if latest is not None:
        (tmp_path / "latest").write_bytes(latest)
    with pytest.raises(CheckpointError, match=r"2 steps of one run \(global_step10, global_step5\) and no file 'la"):
        member_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (
            ["zero_pp_rank_0_mp_rank_00_model_states.pt"],
            r"ZeRO-3 split them over zero_pp_rank_0.*zero_to_fp32\.py \. py",
        ),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "split over 2 model-parallel ranks: mp_rank_00"),
        (["mp_rank_00_model_states.pt", "layer_00-model_states.pt"], "is split by layers .*: layer_00-model_states.pt"),
        (
            ["layer_0_expert_0_mp_rank_00_model_states.pt", "mp_rank_00_model_states.pt"],
            "layers .pipeline .* or experts",
        ),
    ],
    ids=["zero3", "tensor parallel", "pipeline", "experts"],
)
def test_weights_that_deepspeed_split_are_refused(tmp_path, names, reason):
    fill(tmp_path / "global_step5", *names)
    for folder in (tmp_path, tmp_path / "global_step5"):
        with pytest.raises(IncompleteCheckpointError, match=reason) as caught:
            member_folder(folder)
        assert str(tmp_path / "global_step5") in str(caught.value)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_is_refused_with_what_to_do(tmp_path, name):
    with pytest.raises(
        IncompleteCheckpointError, match=rf"an adapter \({name}\), not .*merge_and_unload\(\)"
    ) as caught:
        member_folder(fill(tmp_path, name, "README.md"))
    assert str(tmp_path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_folder_that_cannot_be_listed_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot list the folder .*gone': No such file"):
        member_folder(tmp_path / "gone")
