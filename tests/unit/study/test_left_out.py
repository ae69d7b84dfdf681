"""What stands among the runs: foreign, damaged, closed, doubled; each is named with its reason and stops nothing."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from lbtrain.study.folders import CLOSED, FOREIGN_HYDRA, FOREIGN_SUMMARY, NO_RUN, WANDB, survey
from lbtrain.study.left_out import REPEATED, REPEATED_ELSEWHERE, grouped
from lbtrain.study.load import TWICE, NoRunsError, load_sweep, read_sweeps
from lbtrain.study.pages import page
from lbtrain.study.report import write_report
from tests.unit.study.known_sweep import known_records, make_record

RUN = make_record("Adam", "none", 64, sam=False)


def left_out(*folders: Path, by_sweep: bool = False) -> dict[str, str]:
    """Name of what was left out to the reason."""
    reading = read_sweeps(folders, by_sweep)
    entries = page(reading.table, "", reading.others).left_out
    return {name: entry.reason for entry in entries for name in entry.names}


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_no_run_is_named_with_its_reason(write_sweep) -> None:
    sweep = write_sweep([RUN])
    put(sweep / "other" / "summary.json", json.dumps({"accuracy": 0.9, "status": "done"}))
    put(sweep / "numbers" / "summary.json", "[1, 2]")
    put(sweep / "app" / ".hydra" / "config.yaml", "db: {user: me}\n")
    put(sweep / "pictures" / "a.png")
    put(sweep / "wandb" / "offline-run-20260101_000000-abc" / "files" / "wandb-summary.json", "{}")
    put(sweep / "between" / "digits.json", "{}")
    put(sweep / "figures" / "lambda_max.png")
    put(sweep / ".hidden" / "a")
    put(sweep / "notes.txt")
    (sweep / "nothing").mkdir()
    (sweep / "gone").symlink_to(sweep / "absent")
    (sweep / "loop").symlink_to(sweep / "loop")
    assert left_out(sweep) == {
        "other": FOREIGN_SUMMARY,
        "numbers": FOREIGN_SUMMARY,
        "app": FOREIGN_HYDRA,
        "pictures": NO_RUN,
        "nothing": NO_RUN,
        "wandb": WANDB,
    }
    assert list(load_sweep(sweep)["run"]) == ["0"]


def test_a_strange_summary_beside_the_launchers_mark_is_a_damaged_run(write_sweep) -> None:
    sweep = write_sweep([RUN])
    for name, text in (("1", "[1, 2]"), ("2", '{"a": 1}')):
        put(sweep / name / "summary.json", text)
        put(sweep / name / "job.json", "{}")
    assert list(load_sweep(sweep)["status"]) == ["finished", "unreadable", "unreadable"]
    assert left_out(sweep) == {}


def test_a_damaged_summary_is_named_as_a_run_and_the_others_count(write_sweep) -> None:
    sweep = write_sweep([RUN, RUN, RUN, RUN])
    whole = (sweep / "1" / "summary.json").read_bytes()
    (sweep / "1" / "summary.json").write_bytes(whole[:100])
    fields = json.loads(whole)
    del fields["metrics"]
    (sweep / "2" / "summary.json").write_text(json.dumps(fields))
    (sweep / "3" / "summary.json").write_bytes(b"\xff\xfe" + whole)
    table = load_sweep(sweep)
    assert list(table["status"]) == ["finished", "unreadable", "unreadable", "unreadable"]
    assert "2/summary.json lacks metrics" in table["error"][2]
    assert left_out(sweep) == {}
    assert [run for run, _, _ in page(table, "").lost] == ["1", "2", "3"]


def test_a_summary_that_may_not_be_read_is_named(write_sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = write_sweep([RUN, RUN])
    read = Path.read_bytes

    def closed(self: Path) -> bytes:
        if self.parent.name == "1":
            raise PermissionError(13, "Permission denied", str(self))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", closed)
    table = load_sweep(sweep)
    assert list(table["status"]) == ["finished", "unreadable"]
    assert "Permission denied" in table["error"][1]


def test_a_folder_that_may_not_be_listed_is_named(write_sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = write_sweep([RUN])
    (sweep / "closed").mkdir()
    if os.geteuid() != 0:
        (sweep / "closed").chmod(0)
    else:  # for whom nothing is closed
        list_it = Path.iterdir

        def closed(self: Path):
            if self.name == "closed":
                raise PermissionError(13, "Permission denied", str(self))
            return list_it(self)

        monkeypatch.setattr(Path, "iterdir", closed)
    try:
        assert left_out(sweep) == {"closed": CLOSED}
    finally:
        (sweep / "closed").chmod(0o700)


def test_numbered_folders_are_jobs_only_beside_runs(write_sweep, tmp_path: Path) -> None:
    put(tmp_path / "album" / "2019" / "a.png")
    put(tmp_path / "album" / "2020" / "b.png")
    with pytest.raises(NoRunsError, match=r"album holds no run.*2019: no summary.json"):
        load_sweep(tmp_path / "album")
    put(tmp_path / "album" / "multirun.yaml")  # Hydra's mark: jobs that all died before they wrote
    assert list(load_sweep(tmp_path / "album")["status"]) == ["unfinished", "unfinished"]
    sweep = write_sweep([RUN])
    put(sweep / "1" / "job.json", "{}")
    put(sweep / "2" / "wandb" / "debug.log")
    assert list(load_sweep(sweep)["status"]) == ["finished", "unfinished", "unfinished"]
    assert left_out(sweep) == {}


def test_a_linked_run_counts_once_under_its_name_in_the_sweep(write_sweep) -> None:
    one, two = write_sweep([RUN], "one"), write_sweep([replace(RUN, config=RUN.config | {"seed": 1})], "two")
    (one / "linked").symlink_to(two / "0")
    (one / "again").symlink_to(one / "0")
    table = load_sweep(one)
    assert list(table["run"]) == ["0", "linked"]
    assert list(table["folder"]) == [str((sweep / "0").resolve()) for sweep in (one, two)]
    assert left_out(one) == {"again": TWICE}
    assert left_out(one, two) == {"one/again": TWICE, "two/0": TWICE}


def test_one_of_several_sweeps_may_be_empty_but_not_absent(write_sweep, tmp_path: Path, monkeypatch) -> None:
    sweep = write_sweep([RUN])
    (tmp_path / "empty").mkdir()
    assert left_out(sweep, tmp_path / "empty") == {"empty": "holds no run"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoRunsError, match=r"swep is not a folder; run one first"):
        load_sweep([sweep, tmp_path / "swep"])


def test_the_newer_of_two_equal_runs_counts_and_the_older_is_named(write_sweep) -> None:
    newer = replace(RUN, started="2026-02-01T00:00:00+00:00")
    one, two = write_sweep([RUN, newer], "one"), write_sweep([replace(newer, started="2026-03-01")], "two")
    assert left_out(one) == {"0": REPEATED}
    assert left_out(one, two) == {"one/0": REPEATED_ELSEWHERE, "one/1": REPEATED_ELSEWHERE}


def test_two_runs_without_a_seed_both_count(write_sweep) -> None:
    free = replace(RUN, config=RUN.config | {"seed": None})
    newer = replace(free, started="2026-02-01T00:00:00+00:00")
    one, two = write_sweep([free, newer], "one"), write_sweep([newer], "two")
    assert left_out(one) == {}
    assert left_out(one, two) == {}


def test_the_sweep_is_a_setting_when_asked_for(write_sweep, undrawn) -> None:
    old, new = (write_sweep(known_records((0, 1)), name) for name in ("old", "new"))
    table = load_sweep([old, new])
    assert set(table["sweep"]) == {"old", "new"}
    together = write_report([old, new])
    assert len(together.page.settings.body) == 32
    assert together.csv.read_text().splitlines()[0].split(",")[11] == "sweep"
    report = write_report([old, new], baseline="sweep=old", by_sweep=True)
    assert "sweep (new, old)" in report.page.overview
    assert len(report.page.settings.body) == 64
    assert "sweep" in report.page.settings.header
    head = report.csv.read_text().splitlines()[0].split(",")
    assert head.count("sweep") == 1
    # Each run of the one has its equal in the other: nothing differs.
    differences = report.page.sheets[0]
    values = {entry.text for row in differences.body for entry in row[2:-1]} - {"-"}
    assert values == {"0"}
    assert left_out(old, new, by_sweep=True) == {}


def test_a_day_of_sweeps_names_the_sweep_of_each_run(write_sweep, tmp_path: Path) -> None:
    write_sweep([RUN], "day/one")
    write_sweep([RUN], "day/two")
    assert list(load_sweep(tmp_path / "day")["sweep"]) == ["one", "two"]
    assert load_sweep(tmp_path / "day" / "one")["sweep"].isna().all()


def test_one_entry_names_a_few_and_counts_the_rest() -> None:
    (entry,) = grouped([(f"n{i}", NO_RUN) for i in range(9)])
    assert entry.words == f"n0, n1, n2, n3, n4, n5 and 3 more: {NO_RUN}"


def test_every_wrong_place_is_told_in_one_line(tmp_path: Path) -> None:
    put(tmp_path / "app" / ".hydra" / "config.yaml", "db: {user: me}\n")
    assert [reason for _, reason in survey(tmp_path / "app").others] == [FOREIGN_HYDRA]
    with pytest.raises(NoRunsError) as caught:
        load_sweep(tmp_path / "app")
    assert len(str(caught.value).splitlines()) == 1
    assert FOREIGN_HYDRA in str(caught.value)
