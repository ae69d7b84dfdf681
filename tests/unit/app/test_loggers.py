"""wandb: identity, mode, and one run at a time."""

import json
import sys

import pytest

from lbtrain._lightning import DummyLogger, rank_zero_only
from lbtrain.app import loggers
from lbtrain.app.loggers import close_wandb, wandb_logger
from lbtrain.app.wandb_metrics import DeclaringLogger, best_of
from lbtrain.app.wandb_server import PUBLIC, has_key, server

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_RUN_ID", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


@pytest.mark.parametrize(
    ("variable", "offline", "key", "mode"),
    [
        (None, None, False, "offline"),
        (None, None, True, "online"),
        (None, True, True, "offline"),
        (None, False, False, "online"),
        ("disabled", False, True, "disabled"),
        ("online", None, False, "online"),
    ],
)
def test_mode(variable, offline, key, mode, monkeypatch):
    monkeypatch.delenv("WANDB_MODE")
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert loggers._mode(offline, PUBLIC) == mode


@pytest.mark.parametrize(
    ("url", "host", "found"),
    [(None, "api.wandb.ai", True), (None, "other.org", False), ("https://wandb.firm.org:8080", "wandb.firm.org", True)],
)
def test_key_is_looked_up_for_the_server_in_use(url, host, found, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(f"machine {host}\nlogin user\npassword {'k' * 40}\n")
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert has_key(server()) is found


def test_broken_netrc_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine\n")
    assert has_key(PUBLIC) is False


def test_the_server_is_the_one_asked_for_then_the_variable_s_then_the_login_s(tmp_path, monkeypatch):
    assert server() == PUBLIC
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "settings").write_text("[default]\nbase_url = https://login.org/\n")
    assert server() == "https://login.org"
    monkeypatch.setenv("WANDB_BASE_URL", "http://variable.org:8080")
    assert server() == "http://variable.org:8080"
    assert server("https://asked.org/") == "https://asked.org"


@pytest.mark.parametrize("address", ["wandb.firm.org", "ftp://wandb.firm.org", "https://"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match=f"base_url must be an address such as .*, got '{address}'"):
        server(address)


def test_a_key_for_one_server_is_none_for_another(tmp_path):
    (tmp_path / "netrc").write_text(f"machine a.org\nlogin user\npassword {'k' * 40}\n")
    assert [has_key("https://a.org"), has_key("https://a.org:8443"), has_key("https://b.org")] == [True, True, False]


@pytest.mark.parametrize(
    ("key", "best"),
    [
        ("val/acc", "max"),
        ("val/acc_top5", "max"),
        ("val/top5", "max"),
        ("val_f1", "max"),
        ("valid/auroc", "max"),
        ("val/loss", "min"),
        ("val/loss/dataloader_idx_1", "min"),
        ("validation_error", "min"),
        ("val/lr", None),
        ("value/acc", None),
        *((key, None) for key in ("test/acc", "train/loss", "gap/acc", "hessian/lambda_max", "sharpness/sam", "epoch")),
    ],
)
def test_the_best_value_is_the_largest_score_and_the_smallest_loss_of_the_validation(key, best):
    assert best_of(key) == best


class Recorder:
    """A run that notes what is asked of it, in order."""

    id, group, project, entity = "abc", "a/sweep", "p", ""

    def __init__(self):
        self.asked = []

    def define_metric(self, name, **options):
        self.asked.append(("define", name, options))

    def log(self, values):
        self.asked.append(("log", *values))


def test_a_metric_is_declared_once_before_its_first_value_and_only_where_one_value_is_best():
    run = Recorder()
    logger = DeclaringLogger(experiment=run)
    axis = {"step_metric": "trainer/global_step", "step_sync": True}
    assert run.asked == [("define", "trainer/global_step", {}), ("define", "*", axis)]
    del run.asked[:]
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.log_metrics({"val/loss": 1.0, "val/acc": 0.5}, step=2)
    logger.log_metrics({"val/loss": 0.5}, step=3)
    kinds = [entry[:2] for entry in run.asked]
    assert kinds[0] == ("log", "train/loss")
    assert sorted(kinds[1:3]) == [("define", "val/acc"), ("define", "val/loss")]
    assert kinds[3:] == [("log", "val/loss"), ("log", "val/loss")]
    summaries = {name: options for kind, name, *rest in run.asked if kind == "define" for options in rest}
    assert summaries == {"val/acc": axis | {"summary": "max,last"}, "val/loss": axis | {"summary": "min,last"}}


def test_the_server_reaches_wandb_and_the_run_leaves_a_note_of_itself(tmp_path, monkeypatch):
    opened = {}
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setattr(wandb, "init", lambda **options: opened.update(options) or Recorder())
    wandb_logger("p", save_dir=str(tmp_path), base_url="https://wandb.firm.org/")
    assert opened["settings"].base_url == "https://wandb.firm.org"
    note = {"id": "abc", "group": "a/sweep", "project": "p", "entity": None}
    assert json.loads((tmp_path / loggers.RUN_NAME).read_text()) == note


def test_identity_is_kept_in_the_directory(tmp_path):
    first = loggers._kept_id(tmp_path / "job")
    assert first == loggers._kept_id(tmp_path / "job")
    assert first != loggers._kept_id(tmp_path / "other")


def test_an_identity_that_a_kill_has_left_empty_is_made_anew(tmp_path):
    (tmp_path / loggers.ID_NAME).write_text("")
    kept = loggers._kept_id(tmp_path)
    assert len(kept) == 8
    assert (tmp_path / loggers.ID_NAME).read_text() == kept


def test_a_kill_while_the_identity_is_written_leaves_no_empty_file(tmp_path, monkeypatch):
    def killed(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        loggers._kept_id(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mode", "is_noted"), [("disabled", False), ("offline", True)])
def test_a_run_that_is_none_leaves_no_note(mode, is_noted, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setattr(wandb, "init", lambda **options: Recorder())
    wandb_logger("p", save_dir=str(tmp_path))
    assert (tmp_path / loggers.RUN_NAME).exists() is is_noted


def test_open_run_is_refused(monkeypatch, tmp_path):
    class Run:
        id = "abc"

    monkeypatch.setattr(wandb, "run", Run())
    with pytest.raises(RuntimeError, match=r"'abc' is still open.*call wandb\.finish\(\) first"):
        wandb_logger("p", save_dir=str(tmp_path))


def test_other_ranks_open_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    monkeypatch.setattr(wandb, "init", lambda **options: pytest.fail("opened a run"))
    assert isinstance(wandb_logger("p", save_dir=str(tmp_path)), DummyLogger)
    assert not list(tmp_path.iterdir())


def test_command_line_is_put_back_after_secrets_were_hidden(monkeypatch):
    given = ["train.py", "seed=1", "+api_key=sk-1"]
    monkeypatch.setattr(sys, "argv", given)
    with loggers._arguments_without_secrets():
        assert sys.argv == ["train.py", "seed=1"]
    assert sys.argv is given


def test_run_is_closed_with_the_truth_even_when_its_numbers_are_refused(monkeypatch):
    codes = []

    class Refusing:
        def update(self, *values, **options):
            raise TypeError("no")

    class Run:
        config = summary = Refusing()

    monkeypatch.setattr(wandb, "run", Run())
    monkeypatch.setattr(wandb, "finish", lambda exit_code: codes.append(exit_code))
    with pytest.raises(TypeError, match="no"):
        close_wandb({}, {}, failed=True)
    assert codes == [1]


def test_without_wandb_there_is_nothing_to_close(monkeypatch):
    monkeypatch.setattr(wandb, "run", None)
    monkeypatch.setattr(wandb, "finish", lambda exit_code: pytest.fail("closed nothing"))
    close_wandb({}, {}, failed=False)


def test_the_final_numbers_do_not_replace_the_best_ones(monkeypatch):
    class Run:
        config, summary = {}, {"val/acc": {"max": 0.9, "last": 0.8}}

    class Config(dict):
        def update(self, values, allow_val_change):
            super().update(values)

    monkeypatch.setattr(Run, "config", Config())
    monkeypatch.setattr(wandb, "run", Run())
    monkeypatch.setattr(wandb, "finish", lambda exit_code: None)
    close_wandb({"seed": 1}, {"val/acc": 0.8, "test/acc": 0.7}, failed=False)
    assert Run.summary == {"val/acc": {"max": 0.9, "last": 0.8}, "test/acc": 0.7}
    assert Run.config == {"seed": 1}
