"""No secret of the environment is in anything that a sweep leaves or says, whatever a config makes of it."""

import subprocess

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command, run

# The values are made up. Those of the environment must be nowhere; names that say nothing are no excuse.
VARIABLES = {
    "TEST_API_TOKEN": "token-4711-of-the-environment",
    "TEST_HUB": "hub-4711-under-a-harmless-name",
    "TEST_DB": "postgresql://me:password-4711-in-an-address@host/db",
    "TEST_NOT_IN_THE_CONFIG_PASSWORD": "password-4711-that-no-config-reads",
    "WANDB_API_KEY": "4711abcdef" * 4,
}
SECRETS = (
    *(value for name, value in VARIABLES.items() if name != "TEST_DB"),
    "password-4711-in-an-address",
    "password-4711-of-a-repository",
)
# What a user writes on the command line is in Hydra's own copies of it, and nowhere else.
WRITTEN = ("key-4711-written-by-hand", "variable-4711-of-a-job", "password-4711-by-hand", "key-4711-inside")
HYDRAS = {".hydra", "multirun.yaml"}
TELLTALE = """
import os

from lbtrain._lightning import Callback


class Telltale(Callback):
    def __init__(self, kind, words):
        self.kind, self.words = kind, words

    def on_train_epoch_end(self, trainer, pl_module):
        if self.kind == "raise":
            raise RuntimeError(f"no answer to {self.words} {os.environ['TEST_NOT_IN_THE_CONFIG_PASSWORD']}")
"""
TELLTALE_YAML = """
telltale:
  _target_: planted_telltale.Telltale
  kind: none
  words: ["${my_token}", "${hub}", "${db}", "${api_key}", "${server}", "${copies}", "${service}"]
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("secrets")
    (directory / "planted_telltale.py").write_text(TELLTALE)
    (directory / "own" / "callbacks").mkdir(parents=True)
    (directory / "own" / "callbacks" / "telltale.yaml").write_text(TELLTALE_YAML)
    # wandb looks at the repository in which it is started.
    subprocess.run(["git", "init", "-q"], cwd=directory, check=True)
    address = "https://me:password-4711-of-a-repository@example.org/a.git"
    subprocess.run(["git", "remote", "add", "origin", address], cwd=directory, check=True)
    return directory


@pytest.fixture(scope="module")
def sweep(directory):
    """Two jobs, of which one fails with all secrets in its message."""
    arguments = ["-m", "--config-dir=own", "trainer.max_epochs=1", "data.batch_size=256", "model=linear"]
    arguments += [
        "logger=[csv,wandb]",
        "callbacks=[lr_scaling,hessian,checkpoint,telltale]",
        "callbacks.telltale.kind=none,raise",
    ]
    arguments += ["callbacks.hessian.top_k=1", "+my_token=${oc.env:TEST_API_TOKEN}", "+hub=${oc.env:TEST_HUB}"]
    arguments += ["+db=${oc.env:TEST_DB}", "+copies=[x-${my_token},'${hub}',{deep: '${db}'}]"]
    arguments += ["+api_key=key-4711-written-by-hand", "+server=https://me:password-4711-by-hand@host/x"]
    arguments += ["+hydra.job.env_set.ANY=variable-4711-of-a-job", "+service={port: 1, api_key: key-4711-inside}"]
    with Command([*arguments, "hydra.sweep.dir=sweep"], directory, WANDB_MODE="offline", **VARIABLES) as command:
        return directory, command.done(200)


def holders(directory, secret, apart=()):
    """Return the files, by path, that hold a secret, except for those of some names or in folders of some names."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.relative_to(directory).parts[0] != ".git")
    found = [path for path in files if secret.encode() in path.read_bytes()]
    return [str(path.relative_to(directory)) for path in found if not set(apart) & set(path.parts)]


def test_the_sweep_has_left_all_that_a_sweep_leaves(sweep):
    directory, done = sweep
    records = [read_record(directory / "sweep" / str(number)) for number in range(2)]
    assert [record.status for record in records] == ["finished", "failed"], done
    assert records[1].error == (
        "RuntimeError: no answer to ['***', '${oc.env:TEST_HUB}', 'postgresql://me:***@host/db', '***', "
        "'https://me:***@host/x', ['x-***', '${oc.env:TEST_HUB}', {'deep': 'postgresql://me:***@host/db'}], "
        "{'port': 1, 'api_key': '***'}] ***"
    )
    # Without these the tests below would look for secrets in nothing.
    names = {path.name for path in (directory / "sweep").rglob("*")}
    assert {"summary.json", "metrics.csv", "out.log", "last.ckpt", "config.yaml", "report.html", "results.csv"} <= names
    assert any(name.endswith(".wandb") for name in names)


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_of_the_environment_is_in_no_file(secret, sweep):
    directory, done = sweep
    assert holders(directory, secret) == []
    assert secret not in done.out + done.err


@pytest.mark.parametrize("secret", WRITTEN)
def test_what_was_written_by_hand_is_in_hydras_own_copies_alone(secret, sweep):
    directory, done = sweep
    assert holders(directory, secret, apart=HYDRAS) == []
    assert secret not in done.out + done.err
    # And there it is: what Hydra keeps is what makes a run repeatable.
    assert holders(directory, secret) != []


def test_the_config_of_a_record_names_what_it_does_not_tell(sweep):
    config = read_record(sweep[0] / "sweep" / "0").config
    assert config["copies.0"] == "x-${oc.env:TEST_API_TOKEN}"
    assert config["copies.1"] == config["hub"] == "${oc.env:TEST_HUB}"
    assert config["copies.2.deep"] == "${oc.env:TEST_DB}"
    assert config["server"] == "https://me:***@host/x"
    assert config["service.port"] == 1
    assert not {"my_token", "api_key", "service.api_key"} & set(config)


@pytest.mark.parametrize("many", [(), ("-m", "seed=0,1")], ids=["run", "sweep"])
def test_a_config_that_is_refused_is_told_without_its_secrets(many, tmp_path):
    given = ["data.batch_size=${oc.env:TEST_API_TOKEN}", f"hydra.{'sweep' if many else 'run'}.dir=here"]
    done = run([*many, *given], tmp_path, **VARIABLES)
    assert done.code == 1
    assert "data.batch_size" in done.err
    assert "'***'" in done.err
    assert VARIABLES["TEST_API_TOKEN"] not in done.out + done.err
    assert holders(tmp_path, VARIABLES["TEST_API_TOKEN"]) == []
