"""A run that is killed and resumed equals the run that was left alone, bit for bit."""

import signal

import pytest
import torch

from tests.cli.commands import ROOT, run

COMMON = [
    "callbacks=[lr_scaling,loss_reduction,sam,checkpoint]",
    "callbacks.lr_scaling.warmup_epochs=2.5",
    "scheduler=cosine",
    "data.batch_size=128",
    "trainer.max_epochs=5",
    "trainer.enable_progress_bar=false",
]


def start(folder, *overrides):
    done = run([*COMMON, f"hydra.run.dir={folder}", *overrides], ROOT, timeout=150)
    return done.code, done.out + done.err


@pytest.mark.distributed
@pytest.mark.parametrize("optimizer", ["adam", pytest.param("momentum", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, optimizer):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    chosen = f"optimizer={optimizer}"
    code, said = start(whole, chosen)
    assert code == 0, said[-2000:]
    kill = "+callbacks.kill={_target_: tests.training.kill.KillAtEpoch, epoch: 3}"
    code, said = start(broken, chosen, kill)
    assert code == -signal.SIGKILL, said[-2000:]
    assert not (broken / "summary.json").exists()
    code, said = start(broken, chosen, f"ckpt_path={broken}/checkpoints/last.ckpt")
    assert code == 0, said[-2000:]
    ends = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True) for folder in (whole, broken)]
    assert ends[0]["epoch"] == ends[1]["epoch"] == 4
    assert ends[0]["global_step"] == ends[1]["global_step"] == 5 * 11
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert equal(ends[0][part], ends[1][part]), part
    kept = [next(v for k, v in end["callbacks"].items() if "LearningRateScaling" in k) for end in ends]
    assert kept[0] == kept[1]
    law = {"rule": "linear", "lr": 8.0} if optimizer == "momentum" else {"rule": "sqrt", "lr": 8.0**0.5}
    assert kept[0]["groups"] == [[{**law, "k": 8.0, "moments": 1.0, "decay": 1.0}]]
    assert (kept[0]["reduction"], kept[0]["stretched"]) == ("mean", None)


def equal(a, b):
    """Whether two nested structures agree bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b
