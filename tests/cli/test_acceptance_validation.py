"""What is wrong with a sweep is said before its first job starts."""

import pytest

from tests.cli.commands import run

OWN = """
# @package _global_
callbacks:
  sam:
    rho_max: 0.1
"""


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "mine.yaml").write_text(OWN)
    return tmp_path


def refused(arguments, directory, **environment):
    """Return what a sweep says that starts no job."""
    done = run(["-m", *arguments, "hydra.sweep.dir=sweep"], directory, **environment)
    assert done.code == 1, done
    assert "Traceback" not in done.err
    # No job's directory, and no record of one.
    assert {path.name for path in directory.glob("sweep/*")} <= {"multirun.yaml"}
    return done.err


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["hydra.launcher.devices_per_job=999"], "run 1 of 2: hydra.launcher.devices_per_job must be at most the"),
        (["trainer=gpu"], "trainer.accelerator must be a device that this machine has, got gpu, and torch sees no GPU"),
    ],
    ids=["cores", "GPUs"],
)
def test_devices_that_are_not_there_are_asked_for_in_vain(arguments, hint, directory):
    # A machine with GPUs shows none under an empty list.
    said = refused(["seed=0,1", *arguments], directory, CUDA_VISIBLE_DEVICES="")
    assert hint in said, said


@pytest.mark.parametrize(
    ("arguments", "hints"),
    [
        (
            ["--config-dir=own", "experiment=mine", "callbacks=[sam]", "seed=0,1"],
            ["callbacks.sam.rho_max: SAM has no argument 'rho_max'"],
        ),
        (["data.batchsize=16,64"], ["Did you mean 'batch_size'?"]),
        (["seed=0,1", "hydra.launcher.slot=2"], ["Key 'slot'", "Did you mean 'slots'?"]),
        (["seed=0,1", "hydra/launcher=locl"], ["Did you mean 'local'?"]),
    ],
    ids=["in a file", "on the command line", "of the launcher", "launcher"],
)
def test_a_typo_is_answered_with_what_was_meant(arguments, hints, directory):
    said = refused(arguments, directory)
    assert [hint for hint in hints if hint not in said] == [], said
