"""Names of runs, from their overrides."""

import pytest

from lbtrain.app.names import given_overrides, job_name, labels, sweep_name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["optimizer=adam", "data.batch_size=64"], "optimizer=adam batch_size=64"),
        (["experiment=surlemont2022", "ckpt_path=a/b.ckpt", "seed=1"], "seed=1"),
        (["+logger.wandb.api_key=sk-1", "seed=1"], "seed=1"),
        (["++x.y=[1,2]"], "y=[1,2]"),
    ],
)
def test_job_name_is_short_and_without_secrets(overrides, name):
    assert job_name(overrides) == name


def test_labels_tell_what_differs():
    jobs = [["a=1", "b=2", "c=[x,y]"], ["a=1", "b=3", "c=[x,y,z]"]]
    assert labels(jobs) == ["b=2", "b=3 +z"]


def test_label_of_a_single_job_and_of_equal_jobs():
    # Such as a trial of a search that runs one at a time.
    assert labels([["optimizer.lr=0.1", "experiment=tune"]]) == ["lr=0.1"]
    assert labels([["a=1"], ["a=1"]]) == ["run", "run"]


def test_labels_hold_no_secrets():
    assert labels([["token=sk-1", "a=1"], ["token=sk-2", "a=2"]]) == ["a=1", "a=2"]


def test_names_and_labels_hold_no_password_of_an_address_and_no_variable_of_a_job():
    own = ["+hub=https://me:hunter2@host/a", "+hydra.job.env_set.HF=hf-1", "seed=1"]
    assert job_name(own) == "hub=https://me:***@host/a seed=1"
    assert labels([own, ["seed=1"]]) == ["+hub=https://me:***@host/a", "run"]


def test_outside_of_a_job_there_is_nothing_to_name():
    assert given_overrides() == []
    assert sweep_name() is None
