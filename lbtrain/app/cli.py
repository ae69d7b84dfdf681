"""The command line: `train.py` and the console script `lbtrain` are the same."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.core.plugins import Plugins
from hydra.errors import MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.lbtrain_launcher import LocalLauncher
from lbtrain.app import launcher
from lbtrain.app.instantiate import nearest


@hydra.main(version_base="1.3", config_path="pkg://lbtrain.conf", config_name="train")
def run(cfg: DictConfig) -> float | None:
    """Train one composed config.

    Args:
        cfg: The composed config.

    Returns:
        The metric named by `objective`, for a sweeper; None on ranks that hold no metrics.
    """
    # torch is imported here, so `--help` and `--cfg job` answer without it.
    from lbtrain.app.train import train

    return train(cfg).get(cfg.objective)


def main() -> None:
    """Run the command line; a sweep ends with its comparison, also when jobs failed."""
    # Hydra finds plugins of a wheel by itself, but not those of an editable install.
    Plugins.instance().register(LocalLauncher)
    with _hints():
        try:
            run()
        finally:
            launcher.show_last_sweep()


@contextmanager
def _hints() -> Iterator[None]:
    """Add the nearest valid name to what Hydra says of an unknown one.

    Raises:
        SystemExit: Hydra's own, which it raises while it handles the error.
    """
    try:
        yield
    except SystemExit as stop:
        hint = did_you_mean(stop.__context__)
        if hint:
            print(hint, file=sys.stderr)
        raise


def did_you_mean(error: BaseException | None) -> str | None:
    """Return the nearest valid name for a key or a config group that Hydra does not know.

    Args:
        error: What ended Hydra, or None.

    Returns:
        One sentence; None if the error is of another kind or nothing is near.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        given = error.missing_cfg_file.rsplit("/", 1)[-1]
        return _sentence(given, nearest(given, error.options), error.options)
    cause = error.__cause__ if error is not None else None
    if isinstance(cause, OmegaConfBaseException) and cause.parent_node is not None and cause.key is not None:
        known = [str(key) for key in cause.parent_node]
        return _sentence(str(cause.key), nearest(str(cause.key), known), known)
    return None


def _sentence(given: str, near: str | None, known: list[str]) -> str:
    return f"Did you mean {near!r}?" if near else f"There is no {given!r}; known are: {', '.join(sorted(known))}"


if __name__ == "__main__":
    main()
