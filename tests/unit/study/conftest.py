from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest

from lbtrain.records import RunRecord, write_record
from lbtrain.study.figures import Picture, sketches
from lbtrain.study.report import Report, write_report
from tests.unit.study.known_sweep import NASTY, failed, known_records, make_record


def _write(records: list[RunRecord], folder: Path) -> Path:
    for i, record in enumerate(records):
        write_record(folder / str(i), record)
    return folder


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Write records into numbered job folders and give the sweep's folder."""
    return lambda records, name="sweep": _write(records, tmp_path / name)


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report of the known study, of two seeds, with a failed run and one without a summary; only to be read."""
    lost = failed(make_record("Adam", "sqrt", 64, sam=True, seed=5), NASTY)
    sweep = _write([*known_records((0, 1)), lost], tmp_path_factory.mktemp("known") / "sweep")
    (sweep / "70").mkdir()
    return write_report(sweep)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports of this test have the names and texts of their figures, and a few bytes for each image."""
    png = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + (4).to_bytes(4, "big") + (3).to_bytes(4, "big")

    def pictures(table: pd.DataFrame, folders: Sequence[Path] = ()) -> list[Picture]:
        return [Picture(s.name, s.title, s.alt, png, b"<svg/>", s.section) for s in sketches(table, folders)]

    monkeypatch.setattr("lbtrain.study.report.pictures", pictures)
