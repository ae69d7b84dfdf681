"""What is wrong is said in one message with the way out, and nothing starts."""

import pytest

from tests.cli.commands import run

OWN = """
# @package _global_
callbacks:
  lr_scaling:
    base_batchsize: 32
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("typos")
    (directory / "own" / "experiment").mkdir(parents=True)
    (directory / "own" / "experiment" / "mine.yaml").write_text(OWN)
    return directory


TYPOS = {
    "key": (["data.batchsize=3"], "Did you mean 'batch_size'?"),
    "top level": (["optimzer=adam"], "Did you mean 'optimizer'?"),
    "group member": (["data=digit"], "Did you mean 'digits'?"),
    "callback": (["callbacks=[lr_scaling,samm]"], "Did you mean 'sam'?"),
    "callback that is not in the run": (["callbacks.sam.rho=1"], "add it: callbacks=[...,sam]"),
    "own experiment": (["--config-dir=own", "experiment=mien"], "Did you mean 'mine'?"),
}


@pytest.mark.parametrize("case", TYPOS)
def test_typo_names_what_was_meant_and_nothing_is_trained(case, directory):
    arguments, hint = TYPOS[case]
    name = case.replace(" ", "_")
    done = run([*arguments, f"hydra.run.dir={name}"], directory)
    assert done.code == 1
    assert hint in done.err
    assert "Traceback" not in done.err
    left = {path.name for path in (directory / name).rglob("*")}
    assert not left & {"summary.json", "metrics.csv", "checkpoints"}


def test_all_problems_of_a_config_are_told_at_once(directory):
    faults = ["data.batch_size=???", "callbacks.sam.rho=-1", "+optimizer.momentun=0.5", "scheduler=cosine"]
    arguments = ["--config-dir=own", "experiment=mine", "callbacks=[lr_scaling,sam]", *faults]
    done = run([*arguments, "scheduler._target_=torch.optim.lr_scheduler.StpeLR", "hydra.run.dir=all"], directory)
    assert done.code == 1
    assert "5 problems in the config; nothing was started:" in done.err
    for hint in (
        "data.batch_size=VALUE",
        "callbacks.sam: rho must be at least 0",
        "callbacks.lr_scaling.base_batchsize: LearningRateScaling has no argument 'base_batchsize'",
        "did you mean 'base_batch_size'?",
        "did you mean 'momentum'?",
        "did you mean 'StepLR'?",
    ):
        assert hint in done.err
    assert "Traceback" not in done.err
    assert {path.name for path in (directory / "all").iterdir()} == {".hydra", "train.log"}


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["callbacks=[sam]", "callbacks.sam.rho=0.1,-1,-2", "data.batch_size=16,???"], "run 3 of 6: 1 problem"),
        (["optimizer=sgd,sdg"], "Did you mean 'sgd'?"),
        (["seed=0,1", "hydra.launcher.slots=0"], "hydra.launcher.slots must be a whole number"),
        (["seed=0,1", "hydra.launcher.start_method=fork"], "must be forkserver or spawn, got 'fork'"),
    ],
)
def test_sweep_with_one_bad_config_starts_no_job(arguments, hint, tmp_path):
    done = run(["-m", *arguments, "hydra.sweep.dir=sweep"], tmp_path)
    assert done.code == 1
    assert hint in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "sweep").exists()
