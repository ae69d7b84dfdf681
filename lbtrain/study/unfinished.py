"""What a run that left no record was asked to do."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

# What the launcher adds to each job, as in lbtrain/app/names.py, which this room does not import.
_QUIET = "trainer.enable_progress_bar=false"


def asked(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Read what a run without a record was asked to do from the files that Hydra writes first.

    Args:
        folder: Folder of the run.

    Returns:
        Its overrides, without what the launcher adds, and its flat config; both empty where the files are absent or
        half written. Values that only the running job could work out are left out.
    """
    try:
        overrides = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "overrides.yaml"))
        config = OmegaConf.to_container(OmegaConf.load(folder / ".hydra" / "config.yaml"), resolve=False)
    except Exception:  # absent or half written by a job that was killed: the row then shows only its name
        return [], {}
    flat: dict[str, Any] = {}
    _flatten(config, "", flat)
    asked_for = map(str, overrides) if isinstance(overrides, list) else ()
    return [override for override in asked_for if override != _QUIET], flat


def _flatten(node: Any, prefix: str, flat: dict[str, Any]) -> None:
    for key, value in node.items() if isinstance(node, dict) else ():
        if isinstance(value, dict):
            _flatten(value, f"{prefix}{key}.", flat)
        # An interpolation stands for a value that only the running job could work out.
        elif not isinstance(value, list) and "${" not in str(value):
            flat[f"{prefix}{key}"] = value
