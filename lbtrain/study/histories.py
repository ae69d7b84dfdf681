"""What a run logged while it trained: `metrics.csv` in its folder."""

from pathlib import Path

import pandas as pd

HISTORY_NAME = "metrics.csv"


def history(folder: str | Path) -> pd.DataFrame | None:
    """Read the metrics that a run logged.

    Args:
        folder: Folder of the run.

    Returns:
        One row per line of the file, a column for each metric beside `epoch` and `step`; columns that hold words are
        text. None when there is no such file, or when it is empty or no table: a run that was killed may leave half
        a line.
    """
    path = Path(folder) / HISTORY_NAME
    try:
        found = pd.read_csv(path, on_bad_lines="skip", low_memory=False)
    except (OSError, pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError):
        return None
    return found if len(found) else None


def by_epoch(log: pd.DataFrame, metric: str) -> dict[int, float]:
    """Take one metric's last value of each epoch.

    Args:
        log: As `history` gives it.
        metric: Column.

    Returns:
        Epochs passed (1 after the first) to value, in order; empty when the metric was not logged as numbers.
    """
    if metric not in log or "epoch" not in log:
        return {}
    epochs, values = (pd.to_numeric(log[name], errors="coerce") for name in ("epoch", metric))
    logged = epochs.notna() & values.notna()
    pairs = zip(epochs[logged].tolist(), values[logged].tolist(), strict=True)
    return dict(sorted({int(epoch) + 1: float(value) for epoch, value in pairs}.items()))
