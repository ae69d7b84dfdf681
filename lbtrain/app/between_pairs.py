"""Which runs are the two ends of a line: those that differ in their batch size alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from lbtrain.app.checkpoint import key_of
from lbtrain.app.signatures import ConfigError
from lbtrain.records import SUMMARY_NAME, RunRecord, read_record

# Settings that make the batch size.
_BATCH = ("trainer.accumulate_grad_batches", "trainer.devices", "trainer.num_nodes", "trainer.strategy")
# Settings that change no number: where a run goes on from, what it talks to, what it measured.
_SILENT = ("ckpt_path", "tags", "logger.", "trainer.enable_", "trainer.log_every_n_steps", "callbacks.random_state.")


@dataclass(frozen=True)
class RunAt:
    """A finished run, and the folder that it is in."""

    folder: Path
    name: str
    """Folder as seen from the sweep."""
    record: RunRecord

    @property
    def batch(self) -> float | None:
        """Samples per optimizer step; None if neither metrics nor config say it."""
        config = self.record.config
        devices = config.get("trainer.devices")
        factors = [config.get("data.batch_size"), config.get("trainer.accumulate_grad_batches", 1)]
        factors.append(devices if isinstance(devices, int) else 1)
        told = self.record.metrics.get("batch/global")
        if isinstance(told, (int, float)):
            return float(told)
        return float(factors[0] * factors[1] * factors[2]) if all(isinstance(f, int) for f in factors) else None

    @property
    def label(self) -> str:
        """Words for this end of the line."""
        return f"run {self.name}" if self.batch is None else f"batch {self.batch:g}"

    @property
    def seed(self) -> Any:
        """Of the run."""
        return self.record.config.get("seed")

    @property
    def settings(self) -> dict[str, Any]:
        """All settings but the batch size and those that change no number."""
        return {key: value for key, value in self.record.config.items() if not _passes(key)}


@dataclass(frozen=True)
class Pair:
    """Two ends of a line."""

    start: RunAt
    """At alpha = 0."""
    end: RunAt
    """At alpha = 1."""
    network: str
    """Words for what both have in common: the network, and settings in which the pairs of a sweep differ."""

    @property
    def title(self) -> str:
        """Words for the line."""
        seed = f", seed {self.start.seed}" if self.start.seed == self.end.seed else ""
        return f"{self.network}{seed}, {self.start.label} to {self.end.label}"

    @property
    def name(self) -> str:
        """Stem of the file."""
        return "-".join(run.name.replace("/", "_") for run in (self.start, self.end))


def pairs_in(sweep: Path) -> list[Pair]:
    """Pair the finished runs of a sweep: smallest with largest batch size, all other settings the same.

    Args:
        sweep: Its folder; runs lie in it or one level further down.

    Returns:
        The pairs, in the order of their first runs.

    Raises:
        ConfigError: If there is none.
    """
    if not sweep.is_dir():
        raise ConfigError(f"{sweep} is not a folder: give that of a sweep, such as multirun/DATE/TIME")
    finished = list(_runs(sweep))
    runs = [run for run in finished if run.batch is not None]
    count = len(_summaries(sweep))
    if count and not finished:
        none = f"none of its {count} runs has" if count > 1 else "its one run has not"
        raise ConfigError(f"{sweep}: {none} finished; lbtrain report {sweep} says why")
    if not runs:
        raise ConfigError(f"{sweep} holds no finished run whose batch size is known: give the folder of a sweep")
    found = [(group[0], group[-1]) for group in _groups(runs) if group[0].batch != group[-1].batch]
    if not found:
        raise ConfigError(
            f"no two runs of {sweep} differ in their batch size alone: sweep it, as -m data.batch_size=16,1024, or "
            "give two runs, lbtrain between RUN_A RUN_B"
        )
    varied = _varied([pair[0] for pair in found])
    return [Pair(*pair, _network(pair[0], varied)) for pair in found]


def pair_of(start: RunAt, end: RunAt) -> Pair:
    """Make a pair of two runs that the user has named.

    Args:
        start: At alpha = 0.
        end: At alpha = 1.

    Returns:
        The pair.

    Raises:
        ConfigError: If they were not trained on the same data.
    """
    for key in sorted(start.settings.keys() | end.settings.keys()):
        values = [run.settings.get(key) for run in (start, end)]
        if key.startswith("data.") and values[0] != values[1]:
            raise ConfigError(
                f"{key} is {values[0]!r} in {start.folder} and {values[1]!r} in {end.folder}, so what one was trained "
                "on the other may be tested on: give runs on the same data, such as those of one seed"
            )
    return Pair(start, end, _network(start, []))


def run_at(folder: Path, name: str) -> RunAt:
    """Read a run.

    Args:
        folder: Of the run.
        name: Of the run, for people and files.

    Returns:
        The run.

    Raises:
        ConfigError: If it is none, or has not finished.
    """
    try:
        record = read_record(folder) if folder.is_dir() else None
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if record is None:
        raise ConfigError(f"{folder} holds no {SUMMARY_NAME}: give the folder of a finished run, such as SWEEP/0")
    if record.status != "finished":
        raise ConfigError(f"the run in {folder} has failed ({record.error}): run it again, then measure the line")
    return RunAt(folder, name, record)


def _runs(sweep: Path) -> Iterator[RunAt]:
    """Yield the finished runs of a sweep; those that failed or left no readable summary are named by the report."""
    for path in _summaries(sweep):
        try:
            record = read_record(path.parent)
        except ValueError:
            continue
        if record is not None and record.status == "finished":
            yield RunAt(path.parent, path.parent.relative_to(sweep).as_posix(), record)


def _summaries(sweep: Path) -> list[Path]:
    return sorted([*sweep.glob(f"*/{SUMMARY_NAME}"), *sweep.glob(f"*/*/{SUMMARY_NAME}")])


def _groups(runs: Iterable[RunAt]) -> Iterator[list[RunAt]]:
    """Yield runs that share all but the batch size, smallest first; of equal ones the newest alone."""
    keyed = sorted(((repr(sorted(run.settings.items())), run) for run in runs), key=lambda item: item[0])
    groups = []
    for _, group in groupby(keyed, key=lambda item: item[0]):
        newest = {run.batch: run for run in sorted((run for _, run in group), key=lambda run: run.record.started)}
        groups.append([newest[batch] for batch in sorted(newest, key=float)])
    yield from sorted(groups, key=lambda group: _natural(group[0].name))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split("/")]


def _varied(starts: Sequence[RunAt]) -> list[str]:
    """Return the overrides' keys, seed and network aside, in which the pairs of a sweep differ."""
    given = [_given(run) for run in starts]
    keys = dict.fromkeys(key for own in given for key in own)
    return [key for key in keys if key != "seed" and key != "model" and len({own.get(key) for own in given}) > 1]


def _given(run: RunAt) -> dict[str, str]:
    words = {key_of(word): word for word in run.record.overrides}
    return {key: word for key, word in words.items() if not _passes(key)}


def _network(run: RunAt, varied: Sequence[str]) -> str:
    config = run.record.config
    target = config.get("model.network._target_") or config.get("model._target_") or "network"
    given = _given(run)
    settings = " ".join(given[key] for key in varied if key in given)
    return str(target).rpartition(".")[2] + (f", {settings}" if settings else "")


def _passes(key: str) -> bool:
    is_batch = key.rpartition(".")[2] == "batch_size" and not key.startswith("callbacks.")
    return is_batch or key.startswith((*_BATCH, *_SILENT))
