"""metrics.csv over several sessions."""

import csv

from lbtrain._lightning import rank_zero_only
from lbtrain.app.leftovers import METRICS_ASIDE
from lbtrain.app.metrics_file import MetricsFile


def rows(directory):
    with (directory / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def session(directory, steps, **extra):
    logger = MetricsFile(str(directory))
    for step in steps:
        logger.log_metrics({"loss": float(step), **extra}, step)
    logger.save()
    return logger


def test_rows_of_earlier_sessions_stay_up_to_the_step_where_the_run_goes_on(tmp_path, recwarn):
    session(tmp_path, range(5))
    # Killed after step 4, resumed from a checkpoint after 3 steps, with a new metric.
    session(tmp_path, range(3, 6), acc=0.5)
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3", "4", "5"]
    assert ["acc" in row for row in rows(tmp_path)] == [False] * 3 + [True] * 3
    session(tmp_path, [6])
    assert len(rows(tmp_path)) == 7


def test_session_that_dies_before_its_first_row_loses_nothing(tmp_path, recwarn):
    session(tmp_path, range(3))
    before = rows(tmp_path)
    _ = MetricsFile(str(tmp_path)).experiment
    assert rows(tmp_path) == before


def test_half_a_row_is_dropped(tmp_path, recwarn):
    session(tmp_path, range(3))
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4.")
    session(tmp_path, [3])
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2", "3"]


def test_first_session_is_lightning_s_own_file(tmp_path):
    session(tmp_path, range(3), acc=1.0)
    assert rows(tmp_path) == [{"acc": "1.0", "loss": f"{step}.0", "step": str(step)} for step in range(3)]


def test_other_ranks_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    session(tmp_path, range(3))
    assert not (tmp_path / "metrics.csv").exists()


def test_a_measurement_of_the_weights_that_a_run_goes_on_from_stays(tmp_path, recwarn):
    logger = session(tmp_path, range(4))
    logger.log_metrics({"hessian/lambda_max": 2.0, "time/measure_s": 1.0}, 3)
    logger.log_metrics({"hessian/lambda_max": 4.0, "time/measure_s": 2.0}, 5)
    logger.save()
    session(tmp_path, range(3, 6))
    found = [(row["step"], "hessian/lambda_max" in row) for row in rows(tmp_path)]
    assert found == [("0", False), ("1", False), ("2", False), ("3", True), ("3", False), ("4", False), ("5", False)]


def test_file_is_taken_back_to_what_it_was_at_the_checkpoint(tmp_path, recwarn):
    first = session(tmp_path, range(3))
    assert first.kept() == 3
    first.log_metrics({"loss": 9.0}, 3)
    first.save()
    again = MetricsFile(str(tmp_path))
    # The row that was about to be written when the checkpoint was saved.
    again.go_on(3, {"acc": 0.5, "step": 2})
    again.log_metrics({"loss": 3.0}, 2)  # a step below those that are kept
    assert again.kept() == 5
    assert [(row["step"], row.get("loss")) for row in rows(tmp_path)] == [
        *[(str(step), f"{step}.0") for step in range(3)],
        ("2", None),
        ("2", "3.0"),
    ]


def test_rows_survive_a_kill_while_the_file_is_written_again(tmp_path, recwarn):
    session(tmp_path, range(3))
    (tmp_path / "metrics.csv").rename(tmp_path / METRICS_ASIDE)
    (tmp_path / "metrics.csv").write_text("loss,st")
    assert MetricsFile(str(tmp_path)).kept() == 3
    assert [row["step"] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert not (tmp_path / METRICS_ASIDE).exists()
