"""What an earlier start of a sweep has left: which job ran where, what is finished, what the others go on from."""

import itertools
import logging
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig, OmegaConf, open_dict

from lbtrain.app.leftovers import forget, last_checkpoint
from lbtrain.app.sweep.marks import CONFIG_PATH, MARK_NAME, fingerprint, known, leave_mark
from lbtrain.records import read_record

__all__ = ["Place", "find_places", "fingerprint", "forget", "last_checkpoint", "leave_mark"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a job of a sweep runs, and what it finds there.

    Args:
        directory: Of the job.
        number: For `hydra.job.num`.
        state: "new"; "finished": nothing to do; "resume": go on from `ckpt`; "again": an earlier attempt in this
            directory has left no usable checkpoint, so the job starts afresh in it.
        ckpt: Checkpoint to go on from; None unless the state is "resume".
    """

    directory: Path
    number: int
    state: Literal["new", "finished", "resume", "again"]
    ckpt: Path | None = None


def find_places(
    sweep: Path,
    configs: Sequence[DictConfig],
    subdirs: Sequence[str],
    first_number: int,
    skip_finished: bool,
    given: Collection[Path] = (),
) -> list[Place]:
    """Give each job of a sweep its directory: the one in which it ran before, wherever it stands in the list now.

    A job that has not run before takes its own directory; where another job has run, it takes the next free one.

    Args:
        sweep: Directory of the sweep.
        configs: The composed config of each job, with its `hydra` node.
        subdirs: Directory of each job below that of the sweep, as configured.
        first_number: Number of the first job.
        skip_finished: Whether to look for earlier runs at all; without, every job starts afresh in its own directory.
        given: Directories that this same sweep has given to earlier jobs, as a sweeper with several rounds does.

    Returns:
        One place per job, in order; no two have the same directory.
    """
    numbered = enumerate(zip(configs, subdirs, strict=True), start=first_number)
    jobs = [_Job(config, sweep, str(subdir), number) for number, (config, subdir) in numbered]
    ran = _ran(sweep, set(given)) if skip_finished else {}
    places = _matched(jobs, ran)
    taken = {*given, *places.values()}
    for first in (None, first_number):  # a job's own directory goes to no other job
        for job in (job for job in jobs if job.number not in places):
            for number in [job.number] if first is None else itertools.count(first):
                path = job.at(number)
                if path not in taken and not (skip_finished and _is_used(path)):
                    places[job.number] = path
                    taken.add(path)
                    break
    return [_place(job, places[job.number], places[job.number] in ran) for job in jobs]


@dataclass(frozen=True)
class _Job:
    """A job that looks for its directory."""

    config: DictConfig
    sweep: Path
    subdir: str
    number: int

    def at(self, number: int) -> Path:
        """Return where the job would be under another number; where the number plays no part, one beside its own."""
        own = self.sweep / self.subdir
        if number == self.number:
            return own
        path = self.sweep / self._subdir(number)
        return path if path != own else own.with_name(f"{own.name}-{number}")

    def number_in(self, directory: Path) -> int:
        """Return the number that leads to this directory; the job's own, if none does."""
        told = [int(digits) for digits in re.findall(r"\d+", str(directory.relative_to(self.sweep)))]
        leading = (n for n in reversed(told) if directory == self.sweep / self._subdir(n))
        return self.number if directory == self.at(self.number) else next(leading, self.number)

    def _subdir(self, number: int) -> str:
        job = self.config.hydra.job
        before = OmegaConf.to_container(job, resolve=False).get("num")
        with open_dict(job):
            job.num = number
            try:
                return str(self.config.hydra.sweep.subdir)
            finally:
                job.num = before


def _ran(sweep: Path, given: Collection[Path]) -> dict[Path, str]:
    """Return the directories below the sweep's in which earlier jobs ran, as people sort them, with what ran there."""
    found = {}
    for folder, folders, files in os.walk(sweep):
        path = Path(folder)
        if path == sweep or not (MARK_NAME in files or (path / CONFIG_PATH).is_file()):
            continue
        folders.clear()  # there are no jobs within jobs
        mark = known(path) if path not in given else None
        if mark is not None:
            found[path] = mark
    return dict(sorted(found.items(), key=lambda item: _as_sorted_by_people(item[0])))


def _matched(jobs: Sequence[_Job], ran: dict[Path, str]) -> dict[int, Path]:
    """Return where jobs ran before, by their numbers; of several like jobs each gets one directory, in order."""
    marks = {job.number: fingerprint(job.config) for job in jobs} if ran else {}
    places: dict[int, Path] = {}
    left = dict(ran)
    for same in (True, False):  # whoever still stands where it ran stays there
        for job in (job for job in jobs if job.number not in places):
            own = job.at(job.number)
            choice = [path for path, mark in left.items() if mark == marks[job.number] and (not same or path == own)]
            if choice:
                places[job.number] = choice[0]
                del left[choice[0]]
    return places


def _place(job: _Job, directory: Path, ran: bool) -> Place:
    number = job.number_in(directory)
    if not ran:
        return Place(directory, number, "new")
    try:
        record = read_record(directory)
    except ValueError as error:
        record = None
        _log.warning("%s; as it stands, the run counts as not finished, and its job runs again in its directory", error)
    if record is not None and record.status == "finished":
        return Place(directory, number, "finished")
    ckpt = last_checkpoint(directory)
    return Place(directory, number, "again" if ckpt is None else "resume", ckpt)


def _is_used(path: Path) -> bool:
    # A killed sweep may have made the directory and begun to write the mark.
    return path.exists() and (not path.is_dir() or any(not n.startswith(f".{MARK_NAME}.") for n in os.listdir(path)))


def _as_sorted_by_people(path: Path) -> list[str | int]:
    # Words stand at even places, numbers at odd ones.
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]
