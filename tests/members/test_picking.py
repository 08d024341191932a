from pathlib import Path

import pytest

from ensexport.members.picking import moment, pick


@pytest.mark.parametrize(
    ("names", "taken", "why"),
    [
        (["checkpoint-8.pth.tar", "checkpoint-9.pth.tar", "last.pth.tar", "model_best.pth.tar"],
         "model_best.pth.tar", "the best"),
        (["checkpoint_best.pth", "checkpoint_final.pth"], "checkpoint_best.pth", "the best"),
        (["checkpoint_final.pth", "checkpoint_latest.pth"], "checkpoint_latest.pth", "the last"),
        (["epoch=9-step=1000.ckpt", "last.ckpt"], "last.ckpt", "the last"),
        (["last.ckpt", "last-v1.ckpt"], "last-v1.ckpt", "the last"),
        (["checkpoint.pth", "model_0.pth", "model_29.pth"], "checkpoint.pth", "the last"),
        (["epoch=2-step=300.ckpt", "epoch=10-step=20.ckpt"], "epoch=10-step=20.ckpt", "the newest"),
        (["epoch_1.pth", "epoch_12.pth", "best_acc_epoch_7.pth"], "best_acc_epoch_7.pth", "the best"),
        (["checkpoint-500", "checkpoint-1500"], "checkpoint-1500", "the newest"),
        (["global_step500", "global_step1000"], "global_step1000", "the newest"),
        (["epoch=1-val=0.75.ckpt", "epoch=3-val=0.5.ckpt"], "epoch=3-val=0.5.ckpt", "the newest"),
    ],
    ids=["timm", "nnunet", "final and latest", "lightning", "lightning, resumed", "torchvision", "epochs", "mmengine",
         "trainer", "deepspeed", "values in names"],
)  # fmt: skip
def test_moments_of_one_run_give_one_member(names, taken, why):
    picked = pick([Path("run", name) for name in names])
    assert [path.name for path in picked.taken] == [taken]
    assert sorted(path.name for path in picked.left) == sorted(set(names) - {taken})
    assert picked.why == why


@pytest.mark.parametrize(
    "names",
    [["seed_0.pt", "seed_1.pt"], ["model_0.pt", "model_1.pt"], ["fold0.pth", "epoch_3.pth"],
     ["bestow.pt", "lasting.pt"], ["checkpoint.pt", "swin.pt"], ["best_seed_0.pt", "best_seed_1.pt"],
     ["checkpoint_final.pth"], []],
    ids=["seeds", "models", "not all are moments", "words that only contain one", "other names", "all the best", "one",
         "none"],
)  # fmt: skip
def test_what_is_no_run_is_taken_whole(names):
    picked = pick([Path(name) for name in names])
    assert [path.name for path in picked.taken] == names
    assert (picked.left, picked.why) == ((), "")


def test_a_moment_is_read_as_numbers():
    assert moment(Path("epoch=9-step=1000.ckpt")) == (9, 1000)
    assert moment(Path("checkpoint-12.pth.tar")) == (12,)
    assert moment(Path("seed_12.pt")) == ()
