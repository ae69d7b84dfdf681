"""wandb: identity, mode, and one run at a time."""

import sys

import pytest

from lbtrain._lightning import DummyLogger, rank_zero_only
from lbtrain.app import loggers
from lbtrain.app.loggers import close_wandb, wandb_logger

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
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
    assert loggers._mode(offline) == mode


@pytest.mark.parametrize(
    ("url", "host", "found"),
    [(None, "api.wandb.ai", True), (None, "other.org", False), ("https://wandb.firm.org:8080", "wandb.firm.org", True)],
)
def test_key_is_looked_up_for_the_server_in_use(url, host, found, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text(f"machine {host}\nlogin user\npassword {'k' * 40}\n")
    if url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
    assert loggers._has_key() is found


def test_broken_netrc_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine\n")
    assert loggers._has_key() is False


def test_identity_is_kept_in_the_directory(tmp_path):
    first = loggers._kept_id(tmp_path / "job")
    assert first == loggers._kept_id(tmp_path / "job")
    assert first != loggers._kept_id(tmp_path / "other")


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
