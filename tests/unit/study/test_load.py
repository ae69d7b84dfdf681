import math
from dataclasses import replace
from pathlib import Path

import pytest

from lbtrain.records import write_record
from lbtrain.study.folders import newest_sweep
from lbtrain.study.load import COLUMNS, NoRunsError, load_sweep
from tests.unit.study.known_sweep import failed, known_records, make_record, with_method

RECORD = make_record("SGD", "linear", 64, sam=True)


def test_every_number_of_every_record_is_in_the_table(write_sweep) -> None:
    records = known_records()
    table = load_sweep(write_sweep(records))
    assert list(table["run"]) == [str(i) for i in range(32)]  # 10 after 9
    for record, (_, row) in zip(records, table.iterrows(), strict=True):
        assert all(row[key] == value for key, value in record.metrics.items())
        assert all(row[f"config.{key}"] == value for key, value in record.config.items())


def test_the_axes_of_a_row(write_sweep) -> None:
    row = load_sweep(write_sweep([RECORD])).iloc[0]
    axes = ("optimizer", "rate", "batch", "rho", "lr", "seed", "outcome", "objective")
    assert [row[axis] for axis in axes] == ["SGD momentum 0.9", "linear", 64, 0.05, 0.04, 0, "ok", "test/acc"]
    assert tuple(load_sweep(write_sweep([RECORD])).columns[: len(COLUMNS)]) == COLUMNS


def test_the_method_of_a_row(write_sweep) -> None:
    plain = make_record("Adam", "none", 64, sam=False)
    table = load_sweep(write_sweep([plain, with_method(plain, "GSAM", key="mine")]))
    assert [list(table[name]) for name in ("method", "rho")] == [["", "GSAM"], [0.0, 0.05]]
    assert (table["method.alpha"][1], table["config.callbacks.mine.alpha"][1]) == (0.4, 0.4)
    assert table["method.scope"][1] == "rank"  # which the config leaves out
    assert not {"method.rho", "method.p", "method.adaptive", "method._target_"} & set(table)  # told by other columns


def test_a_single_run_is_one_row(write_sweep) -> None:
    sweep = write_sweep([RECORD])
    assert list(load_sweep(sweep / "0")["run"]) == ["0"]


def test_sweeps_are_put_together_and_a_day_is_read_as_one(write_sweep, tmp_path: Path) -> None:
    one, two = write_sweep([RECORD], "day/one"), write_sweep([RECORD], "day/two")
    assert list(load_sweep([one, two])["run"]) == ["one/0", "two/0"]
    assert list(load_sweep([one, one])["run"]) == ["0"]
    assert list(load_sweep(tmp_path / "day")["run"]) == ["one/0", "two/0"]


def test_jobs_without_a_result_are_rows(write_sweep) -> None:
    sweep = write_sweep([RECORD, failed(RECORD, "out of memory")])
    (sweep / "2" / ".hydra").mkdir(parents=True)
    (sweep / "2" / ".hydra" / "overrides.yaml").write_text(
        "- data.batch_size=256\n- seed=3\n- trainer.enable_progress_bar=false\n"  # the last by the launcher
    )
    (sweep / "2" / ".hydra" / "config.yaml").write_text(
        "data: {batch_size: 256, seed: '${seed}'}\nseed: 3\noptimizer: {_target_: torch.optim.Adam}\n"
        "callbacks: {mine: {_target_: lbtrain.GSAM, alpha: 0.2}}\n"
    )
    (sweep / "3").mkdir()
    (sweep / "4").mkdir()
    (sweep / "4" / "summary.json").write_text("{")
    (sweep / "figures").mkdir()
    table = load_sweep(sweep)
    assert list(table["status"]) == ["finished", "failed", "unfinished", "unfinished", "unreadable"]
    assert table["error"][1] == "out of memory"
    assert table["error"][2] == "no summary.json: still running, or killed"
    assert "4/summary.json is not JSON" in table["error"][4]
    assert str(sweep) not in table["error"][4]
    assert (table["batch"][2], table["optimizer"][2], table["seed"][2]) == (256, "Adam", 3)
    assert (table["method"][2], table["rho"][2], table["method"][3]) == ("GSAM", 0.05, None)
    assert table["overrides"][2] == "data.batch_size=256 seed=3"


def test_diverged_is_an_outcome_of_a_finished_run(write_sweep) -> None:
    nan = replace(RECORD, metrics=RECORD.metrics | {"train/loss": math.nan})
    table = load_sweep(write_sweep([RECORD, nan, make_record("SGD", "linear", 1024, sam=False)]))
    assert list(table["outcome"]) == ["ok", "diverged", "diverged"]
    assert list(table["status"]) == ["finished"] * 3


def test_nothing_there_names_the_newest_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoRunsError, match=r"absent is not a folder; run one first, such as python train.py -m"):
        load_sweep("absent")
    write_record(Path("multirun/2026-01-01/10-00-00/0"), RECORD)
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoRunsError, match=r"empty holds no run: .*newest sweep here is multirun/2026-01-01/10-00-00$"):
        load_sweep("empty")
    assert newest_sweep() == Path("multirun/2026-01-01/10-00-00")
    with pytest.raises(NoRunsError, match="names no folder"):
        load_sweep([])
