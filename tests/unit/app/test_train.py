"""One run as a function: what it leaves, what it hides, what it refuses."""

import os
import signal
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import open_dict

from lbtrain.app import outcome, table, train
from lbtrain.app.instantiate import ConfigError
from lbtrain.app.sweep import refusals
from lbtrain.app.termination import Terminated, sigterm_ends
from lbtrain.records import read_record

SMALL = ("trainer.max_epochs=1", "data.batch_size=256", "trainer.enable_progress_bar=false", "model=linear")


@pytest.fixture
def job(tmp_path):
    """Return what composes a config and makes this process its Hydra job; it is none again afterwards."""

    def started(*overrides, mode=RunMode.RUN):
        with initialize_config_module("lbtrain.conf", version_base="1.3"):
            given = [*SMALL, *overrides]
            cfg = compose("train", overrides=given, return_hydra_config=True)
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(tmp_path / "run")
            cfg.hydra.mode = mode
            HydraConfig.instance().set_config(cfg)
            del cfg["hydra"]
        return cfg

    yield started
    HydraConfig.instance().cfg = None


def test_run_returns_its_numbers_and_leaves_its_record(job, tmp_path, capsys, recwarn):
    before = os.environ.get("PL_GLOBAL_SEED")
    metrics = train.train(job("callbacks=[lr_scaling,loss_reduction]", "logger=csv"))
    record = read_record(tmp_path / "run")
    assert record.status == "finished"
    assert record.metrics == metrics | {"loss/reduction": "mean"}
    assert record.name == "max_epochs=1 batch_size=256 model=linear callbacks=[lr_scaling,loss_reduction] logger=csv"
    assert record.config["data.batch_size"] == 256
    assert "results:" in capsys.readouterr().out
    # No checkpoint callback, no checkpoints; and the next run in this process does not take over the seed.
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["hparams.yaml", "metrics.csv", "summary.json"]
    assert os.environ.get("PL_GLOBAL_SEED") == before


def test_unknown_objective_is_said_at_the_end(job, caplog, recwarn):
    train.train(job("callbacks=none", "logger=csv", "objective=test/ac"))
    assert "objective: this run has no metric 'test/ac'; did you mean 'test/acc'?" in caplog.text


def test_failure_in_the_constructor_is_recorded(job, tmp_path, recwarn):
    with pytest.raises(ValueError, match="batch_size must be an integer"):
        train.train(job("callbacks=none", "data.batch_size=-1"))
    record = read_record(tmp_path / "run")
    assert record.status == "failed"
    assert record.error.startswith("ValueError: batch_size must be an integer of at least 1, got -1")


def test_bad_config_leaves_nothing(job, tmp_path):
    with pytest.raises(ConfigError, match="rho must be at least 0"):
        train.train(job("callbacks=[sam]", "callbacks.sam.rho=-1"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mode", "refused"), [(RunMode.MULTIRUN, True), (RunMode.RUN, False)])
def test_ranks_within_a_sweep_s_own_process_are_refused(mode, refused, job):
    job(mode=mode)
    script = type("_SubprocessScriptLauncher", (), {})()
    trainer = SimpleNamespace(strategy=SimpleNamespace(launcher=script), world_size=2)
    if refused:
        with pytest.raises(ConfigError, match="would run the whole sweep again; use hydra/launcher=local"):
            refusals.refuse_shared_process(trainer)
    else:
        refusals.refuse_shared_process(trainer)


@pytest.mark.parametrize("resumed", [False, True])
def test_what_an_earlier_run_left_is_cleared(resumed, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    curves = {"metrics.csv", "wandb_id.txt", "checkpoints/last.ckpt", "checkpoints/epoch000.ckpt"}
    for name in ("summary.json", "other.txt", *curves):
        (tmp_path / name).touch()
    outcome.clear(tmp_path, resumed=resumed)
    kept = {"other.txt"} | (curves if resumed else set())
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")} == kept


@pytest.mark.parametrize(("own", "recorded"), [(True, None), (False, "elsewhere/last.ckpt")])
def test_run_that_goes_on_is_recorded_with_the_settings_of_its_first_start(own, recorded, job, tmp_path, monkeypatch):
    ckpt = str(tmp_path / "run" / "checkpoints" / "last.ckpt") if own else recorded
    cfg = job("callbacks=none", f"ckpt_path='{ckpt}'")
    outcome.leave(cfg, {}, 0.0, tmp_path / "run", None)
    record = read_record(tmp_path / "run")
    assert record.config["ckpt_path"] == recorded
    assert any(override.startswith("ckpt_path=") for override in record.overrides) != own
    assert cfg.ckpt_path == ckpt


def interrupted():
    try:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904 - as Lightning does
    except SystemExit as stop:
        return stop


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("x"), "ValueError: x"),
        (KeyboardInterrupt(), "KeyboardInterrupt"),
        (SystemExit(3), "SystemExit: 3"),
        (Terminated(), "ended by SIGTERM"),
        (type("SIGTERMException", (SystemExit,), {})(), "ended by SIGTERM"),
        (interrupted(), "KeyboardInterrupt"),
    ],
)
def test_reason_names_what_really_happened(error, reason):
    assert outcome.reason(error) == reason


def ended_twice():
    with sigterm_ends():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)


def test_sigterm_ends_a_run_at_once_and_a_second_one_does_not_disturb_its_record():
    with pytest.raises(Terminated, match="143"):
        ended_twice()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_sigterm_that_lightning_saw_first_gets_an_exit_code():
    seen = type("SIGTERMException", (SystemExit,), {})
    with pytest.raises(Terminated, match="143"), sigterm_ends():
        raise seen
    with pytest.raises(SystemExit, match="3"), sigterm_ends():
        raise SystemExit(3)


def test_sigterm_of_somebody_else_stays_theirs(monkeypatch):
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_: came.append(1))
    try:
        with sigterm_ends():
            signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == [1]
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    with sigterm_ends():
        assert signal.getsignal(signal.SIGTERM) == before


def test_table_shows_what_is_known_and_nothing_else(capsys):
    table.show({"train/loss": 0.5, "hessian/lambda_max": 2.0, "loss/reduction": "mean"}, "/somewhere/[a]")
    out = capsys.readouterr().out
    assert "accuracy" not in out
    assert "±" not in out
    assert [cell.strip() for cell in out.splitlines()[3].strip("│").split("│")] == ["loss", "0.5", "-", "-"]
    assert "2 (largest Hessian eigenvalue)" in out
    assert out.endswith("results: /somewhere/[a]\n")


def test_table_of_a_diverged_run(capsys):
    table.show({"train/loss": float("nan"), "test/loss": float("inf")}, "d")
    assert "\ndiverged: train/loss is nan, test/loss is inf\n" in capsys.readouterr().out
    table.show({"train/loss": 1.0}, "d")
    assert "diverged" not in capsys.readouterr().out


def test_table_shows_every_measure_and_every_matrix_with_its_error(capsys):
    sharpness = {"sharpness/m_keskar": 2.0, "sharpness/m_keskar_stderr": 0.25, "sharpness/keskar_corner": 1.0}
    named = {"sharpness/wide[0]": 3.0, "sharpness/scaled_hessian": 4.0, "sharpness/scaled_hessian_residual": 1.0}
    matrix = {"ggn/lambda_max": 5.0, "ggn/trace": 6.0, "ggn/trace_stderr": 0.5, "hessian/lambda_max": 7.0}
    table.show({**sharpness, **named, **matrix, "sharpness/interrupted": 0.0}, "d")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in capsys.readouterr().out.splitlines()]
    assert [row for row in rows if len(row) == 2] == [
        ["lambda_max", "7 (largest Hessian eigenvalue)"],
        ["ggn: lambda_max", "5 (largest Gauss-Newton eigenvalue)"],
        ["ggn: trace", "6 ± 0.5"],
        ["sharpness, m_keskar", "2 ± 0.25 % of 1 + loss"],
        ["sharpness, wide[0]", "3"],
        ["sharpness, scaled_hessian", "4 loss"],
    ]
