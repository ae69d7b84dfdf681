"""The command line of `lbtrain measure`: which checkpoint, which config, how many measurements."""

import os

import pytest
import yaml

from lbtrain.app import measure
from lbtrain.app.checkpoint import merged, nearest_checkpoints, run_of
from lbtrain.app.measure_sweep import _directory, combinations
from lbtrain.app.signatures import ConfigError

MAIN = {"provider": "main", "schema": "pkg", "path": "lbtrain.conf"}


def run_directory(folder, overrides, *, name="train", sources=(MAIN,), searched=()):
    """Leave what Hydra leaves in the directory of a run, and a checkpoint."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    settings = {"job": {"config_name": name}, "runtime": {"config_sources": list(sources)}}
    settings["overrides"] = {"hydra": ["hydra.mode=RUN", *searched]}
    (folder / ".hydra" / "overrides.yaml").write_text(yaml.safe_dump(list(overrides)))
    (folder / ".hydra" / "hydra.yaml").write_text(yaml.safe_dump({"hydra": settings}))
    return f"{folder}/checkpoints/last.ckpt"


def test_the_config_of_the_run_holds_with_the_user_s_overrides_last(tmp_path):
    path = run_directory(tmp_path / "run", ["data.batch_size=256", "model=linear", "seed=3"])
    line = measure.read([f"ckpt_path={path}", "seed=4"])
    assert line.run.directory == tmp_path / "run"
    assert line.given == ("seed=4",)
    composed = ["data.batch_size=256", "model=linear", "seed=4", f"ckpt_path='{path}'"]
    assert list(line.argv) == [*composed, "hydra.mode=RUN", "hydra.job.name=measure"]


def test_loggers_bars_and_checkpoints_of_the_run_are_left_out(tmp_path):
    own = ["logger=[csv,wandb]", "logger.wandb.project=x", "ckpt_path=old.ckpt", "trainer.enable_progress_bar=false"]
    path = run_directory(tmp_path / "run", [*own, "objective=val/acc", "+trainer.x=1"])
    assert measure.read([f"ckpt_path={path}"]).run.overrides == ("+trainer.x=1",)


@pytest.mark.parametrize(
    ("run", "given", "expected"),
    [
        (["data.batch_size=8"], ["data.batch_size=16"], ["data.batch_size=16"]),
        (["+tags=[a]"], ["tags=[b]"], ["tags=[b]"]),
        # A group chosen anew has none of the values of the one before.
        (["data=mine", "data.size=8", "seed=1"], ["data=digits"], ["seed=1", "data=digits"]),
        (
            ["callbacks=[sam,hessian]", "callbacks.sam.rho=1", "callbacks.hessian.top_k=2"],
            ["callbacks=[hessian]"],
            ["callbacks.hessian.top_k=2", "callbacks=[hessian]"],
        ),
        (["callbacks.sam.rho=1"], ["callbacks.hessian.top_k=2"], ["callbacks.sam.rho=1", "callbacks.hessian.top_k=2"]),
    ],
)
def test_overrides_on_top_of_a_run_s(run, given, expected):
    assert merged(run, given) == expected


def test_configs_of_the_user_s_own_are_found_again(tmp_path):
    sources = [MAIN, {"provider": "command-line", "schema": "file", "path": "/own"}]
    searched = ["hydra.searchpath=[pkg://theirs]"]
    path = run_directory(tmp_path / "run", ["data=mine"], name="other", sources=sources, searched=searched)
    argv = measure.read([f"ckpt_path={path}"]).argv
    assert argv[:2] == ("--config-name=other", "--config-dir=/own")
    assert "hydra.searchpath=[pkg://theirs]" in argv
    argv = measure.read([f"ckpt_path={path}", "--config-dir=/elsewhere"]).argv
    assert [word for word in argv if word.startswith("--config-dir")] == ["--config-dir=/elsewhere"]


def test_checkpoint_outside_of_a_run_takes_the_default_config(tmp_path):
    (tmp_path / "alone.ckpt").touch()
    line = measure.read([f"ckpt_path={tmp_path}/alone.ckpt", "model=linear"])
    assert line.run is None
    assert line.argv[:2] == ("model=linear", f"ckpt_path='{tmp_path}/alone.ckpt'")


def test_rank_started_by_lightning_reads_its_line_alike(tmp_path):
    path = run_directory(tmp_path / "run", [])
    added = ['hydra.run.dir="outputs/x"', "hydra.job.name=train_ddp_process_1", "hydra.output_subdir=null"]
    argv = measure.read([f"ckpt_path={path}", *added]).argv
    assert list(argv[-3:]) == added
    assert "hydra.job.name=measure" not in argv


@pytest.mark.parametrize("name", ["epoch=3-step=10.ckpt", "a b.ckpt", "it's.ckpt", "x[1].ckpt"])
def test_names_that_hydra_cannot_read_are_taken_as_they_are(name, tmp_path):
    (tmp_path / name).touch()
    line = measure.read([f"ckpt_path={tmp_path}/{name}"])
    assert line.checkpoint == f"{tmp_path}/{name}"
    from hydra.core.override_parser.overrides_parser import OverridesParser

    word = next(word for word in line.argv if word.startswith("ckpt_path"))
    assert OverridesParser.create().parse_override(word).value() == f"{tmp_path}/{name}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=1"], "ckpt_path is missing: write ckpt_path=RUN/checkpoints/last.ckpt"),
        (["ckpt_path="], "ckpt_path is missing: write"),
        (["ckpt=a.ckpt"], "ckpt_path is missing: got 'ckpt=a.ckpt', did you mean ckpt_path=a.ckpt?"),
        (["seed=1", "run/x.ckpt"], "got 'run/x.ckpt', did you mean ckpt_path=run/x.ckpt?"),
        (["checkpoint=b.ckpt"], "did you mean ckpt_path=b.ckpt?"),
        (["ckpt_path=a", "ckpt_path=b"], "ckpt_path is given twice"),
        (["ckpt_path=a.ckpt,b.ckpt"], "names 2 checkpoints .a.ckpt, b.ckpt.: give one, or measure all with -m"),
        (["ckpt_path=*.ckpt"], "no checkpoint matches"),
        (["ckpt_path=absent.ckpt"], "absent.ckpt does not exist: give the path of one"),
        (["ckpt_path=."], "is a directory, not a checkpoint"),
    ],
)
def test_command_line_that_cannot_be_read(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        measure.read(words)


def test_nearest_checkpoints_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("outputs/d/1", "outputs/d/2"):
        run_directory(tmp_path / run, [])
    os.utime("outputs/d/1/checkpoints/last.ckpt", (1, 1))
    (tmp_path / "outputs/d/1/checkpoints/epoch009.ckpt").touch()
    with pytest.raises(ConfigError, match=r"the nearest are outputs/d/1/checkpoints/epoch009.ckpt, outputs/d/1/check"):
        measure.read(["ckpt_path=outputs/d/1/checkpoints/epoch09.ckpt"])
    # A run in the place of its checkpoint.
    with pytest.raises(ConfigError, match=r"directory, not a checkpoint: the nearest are outputs/d/2/checkpoints/last"):
        measure.read(["ckpt_path=outputs/d/2"])
    # Nothing near: the newest first.
    assert nearest_checkpoints(measure_path("elsewhere/last.ckpt"))[-1] == "outputs/d/1/checkpoints/last.ckpt"


def measure_path(text):
    from pathlib import Path

    return Path(text)


def test_unreadable_run_is_told(tmp_path):
    path = run_directory(tmp_path / "run", [])
    (tmp_path / "run/.hydra/hydra.yaml").write_text("nothing: here")
    with pytest.raises(ConfigError, match="cannot read in .* what the run was asked for .KeyError"):
        run_of(path)


def test_sweep_measures_every_combination(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).touch()
    jobs = combinations(["ckpt_path=?.ckpt", "callbacks.hessian.num_samples=10,20", "callbacks=[hessian]", "seed=1"])
    assert len(jobs) == 4
    fixed = ["callbacks=[hessian]", "seed=1"]
    assert jobs[0] == ["ckpt_path='a.ckpt'", "callbacks.hessian.num_samples=10", *fixed]
    assert jobs[3] == ["ckpt_path='b.ckpt'", "callbacks.hessian.num_samples=20", *fixed]
    assert combinations(["ckpt_path=b.ckpt,a.ckpt"]) == [["ckpt_path='b.ckpt'"], ["ckpt_path='a.ckpt'"]]


@pytest.mark.parametrize(
    ("word", "message"),
    [("seed=interval(1,2)", "has no end"), ("a b=c", "cannot read 'a b=c'"), ("ckpt_path=c.ckpt", "given twice")],
)
def test_sweep_that_cannot_be_read(word, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").touch()
    with pytest.raises(ConfigError, match=message):
        combinations(["ckpt_path=a.ckpt", word])


def test_sweep_has_a_directory_of_its_own():
    assert str(_directory(["hydra.sweep.dir='x/y'"])) == "x/y"
    assert _directory([]).parts[0] == "multirun"
    with pytest.raises(ConfigError, match=r"give hydra.sweep.dir=DIR"):
        _directory(["hydra.run.dir=x"])


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_is_asked_for(words):
    assert measure.wants_help(words)
    assert not measure.wants_help(["ckpt_path=x"])
    assert measure.USAGE.startswith("usage: lbtrain measure ckpt_path=")


def test_wrong_line_is_told_in_one_line(capsys):
    assert measure.told(ConfigError("a\nb")) == 2
    assert capsys.readouterr().err == "lbtrain measure: a b\n"
