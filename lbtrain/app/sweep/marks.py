"""Which job a directory belongs to: the fingerprint of its config, noted before it starts."""

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lbtrain.app.config import without_secrets
from lbtrain.app.leftovers import forget
from lbtrain.records import replace_file

MARK_NAME = "job.json"
# Hydra writes the composed config of a job here when the job starts, without its `hydra` node.
CONFIG_PATH = Path(".hydra", "config.yaml")
# Where loggers write says nothing about what a run computes.
_LOGGER_PLACES = frozenset({"save_dir", "root_dir", "log_dir", "dir"})
_log = logging.getLogger(__name__)


def fingerprint(config: DictConfig) -> str:
    """Return what tells a job's config from others, whatever its number, its place and the time.

    Nothing is interpolated: values from the environment stay names, and `${now:...}` is the same tomorrow.

    Args:
        config: The composed config of a job, with or without its `hydra` node.

    Returns:
        SHA-256 of the config, 64 hexadecimal digits; `hydra`, the progress bar, the places and keys of loggers, and a
        `ckpt_path` of null are left out.
    """
    tree: Any = OmegaConf.to_container(config, resolve=False)
    # Jobs that start from different checkpoints are different jobs. Older configs may lack the key.
    tree = {key: node for key, node in tree.items() if key != "hydra" and (key, node) != ("ckpt_path", None)}
    if isinstance(tree.get("trainer"), dict):
        tree["trainer"].pop("enable_progress_bar", None)
    tree["logger"] = _without_places(tree.get("logger"))
    # Keys of one mapping may be of several types: as words they can be sorted.
    return hashlib.sha256(json.dumps(_worded(tree), sort_keys=True).encode()).hexdigest()


def leave_mark(directory: Path, fingerprint: str) -> None:
    """Note in a directory, before its job starts, which job that is; what another job has left there is removed.

    Args:
        directory: Of the job; made when absent.
        fingerprint: Of its config.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        known: str | None = _read_mark(directory)
    except (FileNotFoundError, ValueError):
        known = _of_config(directory)
    if known != fingerprint:
        forget(directory)
    replace_file(directory / MARK_NAME, (json.dumps({"fingerprint": fingerprint}) + "\n").encode())


def known(directory: Path) -> str | None:
    """Look up what ran in a directory.

    Args:
        directory: Of a job.

    Returns:
        The fingerprint of its config; None if that cannot be told. What is damaged is said on the screen.
    """
    try:
        return _read_mark(directory)
    except FileNotFoundError:  # of a version of lbtrain that left none
        return _of_config(directory)
    except ValueError as error:
        mark = _of_config(directory)
        unknown = "unknown: the directory is left as it is, and the job runs in another"
        source = f"taken from {CONFIG_PATH}" if mark else unknown
        _log.warning("%s is damaged (%s); which job ran there is %s", directory / MARK_NAME, error, source)
        return mark


def _read_mark(directory: Path) -> str:
    fields = json.loads((directory / MARK_NAME).read_bytes().decode())
    if not isinstance(fields, dict) or not isinstance(fields.get("fingerprint"), str):
        raise ValueError("no fingerprint in it")
    return str(fields["fingerprint"])


def _of_config(directory: Path) -> str | None:
    try:
        config = OmegaConf.load(directory / CONFIG_PATH)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException):
        return None
    if not isinstance(config, DictConfig) or not len(config):
        return None
    ckpt = OmegaConf.to_container(config, resolve=False).get("ckpt_path")  # type: ignore[union-attr]
    if isinstance(ckpt, str) and directory.absolute() in Path(ckpt).absolute().parents:
        config.ckpt_path = None  # the job had been started again
    return fingerprint(config)


def _without_places(loggers: Any) -> Any:
    """Return the config of loggers without where they write and without their keys."""
    if not isinstance(loggers, dict):
        return loggers
    kept = {key: _without_places(node) for key, node in loggers.items() if key not in _LOGGER_PLACES}
    return {key: node for key, node in kept.items() if not isinstance(node, str) or without_secrets([f"{key}={node}"])}


def _worded(node: Any) -> Any:
    if isinstance(node, dict):
        return {f"{type(key).__name__} {key}": _worded(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_worded(value) for value in node]
    return node if isinstance(node, (str, int, float, bool, type(None))) else str(node)
