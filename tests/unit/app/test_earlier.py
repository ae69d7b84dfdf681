"""Where the jobs of a sweep that is started again find what their earlier attempts left."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lbtrain.app import leftovers, loggers
from lbtrain.app.sweep.earlier import find_places, fingerprint, forget, last_checkpoint, leave_mark
from lbtrain.records import RunRecord, write_record


def config(batch=16, subdir="${hydra.job.num}", **more):
    hydra = {"job": {"num": 0, "override_dirname": f"batch={batch}"}, "sweep": {"subdir": subdir}}
    return OmegaConf.create({"data": {"batch_size": batch}, "seed": 0, "hydra": hydra, **more})


def places(sweep, *configs, subdirs=None, first=0, skip=True, given=()):
    subdirs = subdirs or [str(number) for number in range(first, first + len(configs))]
    return find_places(sweep, configs, subdirs, first, skip, given)


def checkpoint(path, keys=("optimizer_states", "loops"), when=None):
    """Write what can be told of a checkpoint without torch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("last/data.pkl", " ".join(keys))
        archive.writestr("last/data/0", b"\0" * 1000)
    if when is not None:
        os.utime(path, (when, when))
    return path


def ran(sweep, name, job, status="finished", ckpt=False):
    """Leave what a job leaves: its mark and, unless it was killed, its record."""
    folder = sweep / name
    leave_mark(folder, fingerprint(job))
    if status:
        error = None if status == "finished" else "ended by SIGTERM"
        write_record(folder, RunRecord("n", status, error, (), {}, {}, {}, None, "2026-01-31T12:00:00+00:00", 1.0))
    if ckpt:
        checkpoint(folder / "checkpoints" / "last.ckpt")
    return folder


def short(found, sweep):
    return [(str(place.directory.relative_to(sweep)), place.number, place.state) for place in found]


def test_nothing_there_is_a_new_sweep(tmp_path):
    found = places(tmp_path / "s", config(16), config(64), first=3)
    assert short(found, tmp_path / "s") == [("3", 3, "new"), ("4", 4, "new")]
    assert [place.ckpt for place in found] == [None, None]


def test_states_of_jobs_follow_what_they_left(tmp_path):
    jobs = [config(batch) for batch in (1, 2, 3, 4, 5)]
    ran(tmp_path, "0", jobs[0])
    ran(tmp_path, "1", jobs[1], status=None, ckpt=True)
    ran(tmp_path, "2", jobs[2], status=None)
    ran(tmp_path, "3", jobs[3], status="failed", ckpt=True)
    found = places(tmp_path, *jobs)
    states = ["finished", "resume", "again", "resume", "new"]
    assert short(found, tmp_path) == [(str(number), number, state) for number, state in enumerate(states)]
    last = Path("checkpoints", "last.ckpt")
    assert [place.ckpt for place in found] == [None, tmp_path / "1" / last, None, tmp_path / "3" / last, None]


def test_extended_sweep_keeps_each_job_where_it_ran(tmp_path):
    for number, batch in enumerate((16, 64)):
        ran(tmp_path, str(number), config(batch))
    found = places(tmp_path, config(8), config(16), config(32), config(64))
    assert short(found, tmp_path) == [("3", 3, "new"), ("0", 0, "finished"), ("2", 2, "new"), ("1", 1, "finished")]


def test_other_config_at_the_same_place_is_not_overwritten(tmp_path):
    ran(tmp_path, "0", config(16))
    assert short(places(tmp_path, config(16, seed=1)), tmp_path) == [("1", 1, "new")]


def test_like_jobs_are_matched_one_to_one(tmp_path):
    like = config(16)
    ran(tmp_path, "0", like)
    ran(tmp_path, "1", like, status=None)
    found = places(tmp_path, like, like, like)
    assert short(found, tmp_path) == [("0", 0, "finished"), ("1", 1, "again"), ("2", 2, "new")]


def test_like_jobs_that_moved_are_matched_in_order(tmp_path):
    like = config(16)
    for name in ("2", "10"):
        ran(tmp_path, name, like)
    found = places(tmp_path, like, like)
    assert short(found, tmp_path) == [("2", 2, "finished"), ("10", 10, "finished")]


def test_later_round_of_a_sweeper_is_not_its_own_earlier_run(tmp_path):
    folder = ran(tmp_path, "0", config(16))
    assert short(places(tmp_path, config(16), first=1, given=[folder]), tmp_path) == [("1", 1, "new")]


def test_directories_named_by_overrides_are_found(tmp_path):
    named = "at/${hydra.job.override_dirname}"
    jobs = [config(batch, subdir=named) for batch in (8, 16)]
    ran(tmp_path, "at/batch=16", jobs[1])
    found = places(tmp_path, *jobs, subdirs=["at/batch=8", "at/batch=16"])
    assert short(found, tmp_path) == [("at/batch=8", 0, "new"), ("at/batch=16", 1, "finished")]
    # Another seed, which the name does not tell.
    other = config(16, subdir=named, seed=1)
    found = places(tmp_path, other, subdirs=["at/batch=16"])
    assert short(found, tmp_path) == [("at/batch=16-1", 0, "new")]


def test_jobs_of_one_name_do_not_share_a_directory(tmp_path):
    jobs = [config(16, subdir="same"), config(64, subdir="same")]
    for skip in (True, False):
        found = places(tmp_path, *jobs, subdirs=["same", "same"], skip=skip)
        assert [place.directory.name for place in found] == ["same", "same-0"]


def test_without_skipping_every_job_starts_afresh_in_its_own_directory(tmp_path):
    ran(tmp_path, "0", config(16))
    ran(tmp_path, "1", config(64), status=None, ckpt=True)
    found = places(tmp_path, config(64), config(16), skip=False)
    assert short(found, tmp_path) == [("0", 0, "new"), ("1", 1, "new")]


def test_damaged_record_is_named_and_its_job_runs_again(tmp_path, caplog):
    folder = ran(tmp_path, "0", config(16), ckpt=True)
    (folder / "summary.json").write_text('{"status": "fin')
    assert short(places(tmp_path, config(16)), tmp_path) == [("0", 0, "resume")]
    assert str(folder / "summary.json") in caplog.text
    assert "counts as not finished" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"fingerprint": 1}', "\xff"])
def test_damaged_mark_is_named_and_its_directory_is_left_alone(text, tmp_path, caplog):
    folder = ran(tmp_path, "0", config(16))
    (folder / "job.json").write_text(text, encoding="latin-1")
    assert short(places(tmp_path, config(16)), tmp_path) == [("1", 1, "new")]
    assert f"{folder / 'job.json'} is damaged" in caplog.text
    assert "the directory is left as it is" in caplog.text


def test_config_that_hydra_wrote_stands_in_for_a_missing_or_damaged_mark(tmp_path, caplog):
    job = config(16, lr=1e-5, name="${now:%H}", key="${oc.env:NO_SUCH}", ckpt_path=None, trainer={"max_epochs": 3})
    for number, mark in enumerate((None, "{")):
        folder = tmp_path / str(number)
        (folder / ".hydra").mkdir(parents=True)
        written = OmegaConf.masked_copy(job, [key for key in job if key != "hydra"])
        written.trainer.enable_progress_bar = False
        written.ckpt_path = str(folder / "checkpoints" / "last.ckpt") if number else None  # it had gone on
        OmegaConf.save(written, folder / ".hydra" / "config.yaml")
        if mark:
            (folder / "job.json").write_text(mark)
    assert short(places(tmp_path, job, job), tmp_path) == [("0", 0, "again"), ("1", 1, "again")]
    assert caplog.text.count("is damaged") == 1
    (tmp_path / "0" / ".hydra" / "config.yaml").write_text("a: [")
    assert short(places(tmp_path, job, job), tmp_path) == [("2", 2, "new"), ("1", 1, "again")]


def test_directory_that_a_killed_sweep_only_made_is_free(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / ".job.json.ab12.tmp").touch()
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "notes.txt").touch()
    assert short(places(tmp_path, config(16), config(64)), tmp_path) == [("0", 0, "new"), ("2", 2, "new")]


def test_fingerprint_is_of_what_is_computed_and_not_of_where():
    job = config(16, logger={"csv": {"save_dir": "a", "prefix": ""}}, trainer={"max_epochs": 3}, ckpt_path=None)
    same = [
        OmegaConf.merge(job, {"hydra": {"job": {"num": 7}}}),
        OmegaConf.masked_copy(job, [key for key in job if key != "ckpt_path"]),
        OmegaConf.merge(job, {"trainer": {"enable_progress_bar": False}}),
        OmegaConf.merge(job, {"logger": {"csv": {"save_dir": "b", "api_key": "abcd"}}}),
        OmegaConf.create(dict(reversed(list(OmegaConf.to_container(job, resolve=False).items())))),
    ]
    assert {fingerprint(other) for other in same} == {fingerprint(job)}
    others = [
        {"ckpt_path": "x/last.ckpt"},
        {"seed": 1},
        {"seed": "0"},
        {"seed": None},
        {"trainer": {"max_epochs": 4}},
        {"logger": {"csv": {"prefix": "a"}}},
    ]
    assert len({fingerprint(OmegaConf.merge(job, other)) for other in [{}, *others]}) == len(others) + 1
    assert len(fingerprint(job)) == 64


def test_fingerprint_resolves_nothing(monkeypatch):
    job = config(16, data={"token": "${oc.env:SECRET_TOKEN}", "at": "${no_such_resolver:1}"})
    monkeypatch.setenv("SECRET_TOKEN", "one")
    before = fingerprint(job)
    monkeypatch.setenv("SECRET_TOKEN", "two")
    assert fingerprint(job) == before


def test_mark_of_another_job_takes_its_leftovers_away(tmp_path):
    folder = ran(tmp_path, "0", config(16), ckpt=True)
    leave_mark(folder, fingerprint(config(16)))
    assert last_checkpoint(folder) is not None
    assert (folder / "summary.json").exists()
    leave_mark(folder, fingerprint(config(64)))
    assert last_checkpoint(folder) is None
    assert [path.name for path in folder.iterdir()] == ["checkpoints", "job.json"]
    assert json.loads((folder / "job.json").read_text()) == {"fingerprint": fingerprint(config(64))}


def test_newest_whole_checkpoint_is_taken_and_last_comes_first(tmp_path):
    folder = tmp_path / "checkpoints"
    assert last_checkpoint(tmp_path) is None
    epoch = checkpoint(folder / "epoch001.ckpt", when=2)
    assert last_checkpoint(tmp_path) == epoch
    last = checkpoint(folder / "last.ckpt", when=1)
    assert last_checkpoint(tmp_path) == last
    later = checkpoint(folder / "last-v1.ckpt", when=3)
    assert last_checkpoint(tmp_path) == later


def test_checkpoints_that_cannot_resume_are_passed_over(tmp_path):
    folder = tmp_path / "checkpoints"
    whole = checkpoint(folder / "epoch000.ckpt", when=1)
    for size in (0, 1, 500, -1):
        last = checkpoint(folder / "last.ckpt")
        data = last.read_bytes()
        last.write_bytes(data[:size])
        assert last_checkpoint(tmp_path) == whole, size
    checkpoint(folder / "last.ckpt", keys=("state_dict",))
    assert last_checkpoint(tmp_path) == whole
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").symlink_to("gone.ckpt")
    assert last_checkpoint(tmp_path) == whole
    (folder / "last.ckpt").unlink()
    (folder / "last.ckpt").mkdir()
    assert last_checkpoint(tmp_path) == whole
    (folder / "last.ckpt" / "meta.pt").touch()
    assert last_checkpoint(tmp_path) == folder / "last.ckpt"


def test_fresh_start_forgets_what_it_would_take_over_and_nothing_else(tmp_path):
    names = (leftovers.METRICS_NAME, leftovers.METRICS_ASIDE, loggers.ID_NAME, loggers.RUN_NAME, "spectrum.json")
    for name in (*names, "summary.json", "job.json", "out.log"):
        (tmp_path / name).touch()
    checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "checkpoints" / "sharded.ckpt").mkdir()
    forget(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["checkpoints", "job.json", "out.log"]
    assert loggers.METRICS_NAME == leftovers.METRICS_NAME
    forget(tmp_path / "absent")


def test_reading_what_is_there_imports_no_torch():
    code = "import sys, lbtrain.app.sweep.earlier; print({'torch', 'lightning'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
