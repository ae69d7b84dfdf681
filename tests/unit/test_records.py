"""Only these tests would see a record that a killed run left in part, or a number that JSON cannot hold."""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lbtrain.records import RunRecord, read_record, replace_file, write_record

RECORD = RunRecord(
    name="batch 64",
    status="finished",
    error=None,
    overrides=("data.batch_size=64", "callbacks=[sam]"),
    config={"seed": 0, "data.batch_size": 64, "trainer.profiler": None, "optimizer.nesterov": False, "name": "ä <b>"},
    metrics={"test/acc": 0.9888888888888889, "loss/reduction": "mean"},
    versions={"torch": "2.13.0"},
    git_commit=None,
    started="2026-01-01T00:00:00+00:00",
    duration_s=1.25,
)
NUMBERS = st.floats(allow_nan=False)


def test_a_record_comes_back_as_it_went(tmp_path: Path) -> None:
    path = write_record(tmp_path / "job" / "0", RECORD)
    assert path == tmp_path / "job" / "0" / "summary.json"
    assert read_record(path.parent) == RECORD


@given(metrics=st.dictionaries(st.text(min_size=1), NUMBERS), duration=NUMBERS)
def test_every_float_survives(tmp_path_factory: pytest.TempPathFactory, metrics: dict, duration: float) -> None:
    folder = tmp_path_factory.mktemp("run")
    record = replace(RECORD, metrics=metrics, duration_s=duration)
    write_record(folder, record)
    assert read_record(folder) == record


def test_what_is_not_finite_is_strict_json(tmp_path: Path) -> None:
    metrics = {"train/loss": math.nan, "test/loss": math.inf, "gap/loss": -math.inf}
    path = write_record(tmp_path, replace(RECORD, metrics=metrics, config={"trainer.max_time": math.inf}))

    def refuse(word: str) -> None:
        pytest.fail(f"{word} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["metrics"]["test/loss"] == "inf"
    back = read_record(tmp_path)
    assert math.isnan(back.metrics["train/loss"])
    assert back.metrics["gap/loss"] == -math.inf
    assert back.config == {"trainer.max_time": math.inf}


def test_the_file_is_sorted_and_indented(tmp_path: Path) -> None:
    text = write_record(tmp_path, RECORD).read_text()
    fields = json.loads(text)
    assert list(fields) == sorted(fields)
    assert '\n  "config": {\n    "data.batch_size": 64' in text


def test_no_record_is_none(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "absent") is None


def test_fields_of_a_newer_version_are_passed_over(tmp_path: Path) -> None:
    path = write_record(tmp_path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "green"}))
    assert read_record(tmp_path) == RECORD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"name": "a', "is not JSON"),
        ("\udcff", "is not JSON"),
        ("[1, 2]", "must hold one JSON object, got a list"),
        ('{"name": "a"}', "lacks status, error, overrides"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        read_record(tmp_path)
    assert str(tmp_path / "summary.json") in str(error.value)
    assert "delete the file and repeat the run" in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("status", "done"), ("metrics", [1]), ("duration_s", "long"), ("overrides", 3), ("config", None)],
)
def test_a_field_of_the_wrong_kind_is_named(tmp_path: Path, field: str, value: object) -> None:
    path = write_record(tmp_path, RECORD)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match="does not hold a run record"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "done"}, "status must be one of"),
        ({"status": "failed"}, "error must be given for a failed run"),
        ({"error": "out of memory"}, "error must be given for a failed run"),
        ({"config": {"callbacks": ["sam"]}}, r"config\['callbacks'\] must be a scalar, got list"),
        ({"metrics": {"test/acc": None}}, r"metrics\['test/acc'\] must be a float or a str, got NoneType; call .item"),
    ],
)
def test_a_record_that_could_not_be_read_is_not_written(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        write_record(tmp_path, replace(RECORD, **change))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old")

    def full(fd: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    replace_file(tmp_path / "mine", b"")
    (tmp_path / "other").touch()
    assert (tmp_path / "mine").stat().st_mode == (tmp_path / "other").stat().st_mode
