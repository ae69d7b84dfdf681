"""What is written down about a run: its config as flat keys without secrets, the versions, and the commit."""

import importlib.metadata
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lbtrain.app.secrecy import blanked, is_secret, masked, unread, without_secrets

Scalar = str | int | float | bool | None
__all__ = ["Scalar", "flat", "git_commit", "redacted", "versions", "without_secrets"]

# Values from the environment stay names, and directories of this machine stay out.
_FROM_ENVIRONMENT = re.compile(r"\$\{\s*oc\.env:")
_FROM_ENVIRONMENT_NAME = re.compile(r"\$\{\s*oc\.env:\s*(\w+)")
_DIRECTORY = re.compile(r"\$\{\s*hydra:\s*(runtime\.(output_dir|cwd)|run\.dir|sweep\.dir)|\$\{\s*paths\.")
# What a config writes where either a list or a mapping may be given: Hydra merges neither into the other.
_CREATED = "${oc.create:"
_PACKAGES = (
    "lbtrain",
    "torch",
    "pytorch-lightning",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scikit-learn",
    "wandb",
)


def flat(cfg: DictConfig) -> dict[str, Scalar]:
    """Flatten a config for records, loggers and tables.

    Left out are the blocks `hydra` and `paths`, values made from directories of a run, copies of other nodes
    (`optimizer: ${optimizer}`), empty lists, and secrets. Lists that `${oc.create:[...]}` makes are lists. Values from
    environment variables keep the name of the variable, also when another value refers to them.

    Args:
        cfg: The composed config.

    Returns:
        Values by dotted key; entries of lists by their position, from 0.
    """
    raw = {
        key: node for key, node in OmegaConf.to_container(cfg, resolve=False).items() if key not in ("hydra", "paths")
    }
    hidden: dict[str, str] = {}
    safe = OmegaConf.create(_mask(OmegaConf.to_container(cfg, resolve=False), hidden))
    rows: dict[str, Scalar] = {}
    for path, text in _leaves(raw):
        key = ".".join(map(str, path))
        value = _resolved(safe, path, text)
        if isinstance(value, str):
            for token, original in hidden.items():
                value = value.replace(token, original)
            value = masked(value)
        if _is_config(value) and str(text).startswith(_CREATED):
            made = _leaves(OmegaConf.to_container(value), path)
            rows.update({".".join(map(str, at)): _shown(part) for at, part in made if not is_secret(at, part)})
        elif not (_is_config(value) or is_secret(path, value) or _names_directory(value)):
            rows[key] = value
    return rows


def redacted(text: str, cfg: DictConfig) -> str:
    """Blank out the secrets of a config in a text, such as the message of an error.

    Args:
        text: Any text.
        cfg: The composed config. Secrets are the values of its secret keys, and those of environment variables with a
            secret name, whether the config reads them or not.

    Returns:
        The text with `***` for each of them, and for passwords in addresses; with `${oc.env:NAME}` for what the config
        reads from other variables, unless it is a path.
    """
    found, variables = set[str](), set[str]()
    for path, written in _leaves(OmegaConf.to_container(cfg, resolve=False)):
        named = _FROM_ENVIRONMENT_NAME.findall(written) if isinstance(written, str) else []
        variables.update(named)
        if is_secret(path, written) or is_secret(named, written):
            found.add(str(_resolved(cfg, path, written)))
    return unread(masked(blanked(text, found)), variables)


def versions() -> dict[str, str]:
    """Look up the versions that shape a run's numbers.

    Returns:
        Installed version by distribution name, and that of Python.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit(cwd: str | Path) -> str | None:
    """Look up the commit that a directory's files come from.

    Args:
        cwd: A directory of the working tree.

    Returns:
        The 40 digits of the commit, with `-dirty` when tracked files differ from it; None without git, repository or
        commit.
    """
    # Excluding all tags leaves the commit itself.
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _mask(node: Any, hidden: dict[str, str], path: tuple[Any, ...] = ()) -> Any:
    # What must not be resolved becomes a token, so that values that refer to it do not resolve it either.
    if isinstance(node, Mapping):
        return {key: _mask(value, hidden, (*path, key)) for key, value in node.items()}
    if isinstance(node, list):
        return [_mask(value, hidden, (*path, position)) for position, value in enumerate(node)]
    unresolved = isinstance(node, str) and (_FROM_ENVIRONMENT.search(node) or _DIRECTORY.search(node))
    if unresolved or is_secret(path, node):
        token = f"<unresolved {len(hidden)}>"
        hidden[token] = node if unresolved else "***"
        return token
    return node


def _leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _leaves(value, (*path, position))
    else:
        yield path, node


def _resolved(cfg: DictConfig, path: Sequence[Any], text: Any) -> Any:
    # Key by key: a key may itself contain dots. What does not resolve stays as it is written.
    node: Any = cfg
    try:
        for key in path:
            node = node[key]
    except OmegaConfBaseException:
        return text
    return node if isinstance(node, (str, int, float, bool, type(None))) or _is_config(node) else str(node)


def _shown(value: Any) -> Any:
    return masked(value) if isinstance(value, str) else value


def _is_config(value: Any) -> bool:
    return OmegaConf.is_config(value)


def _names_directory(value: Any) -> bool:
    return isinstance(value, str) and _DIRECTORY.search(value) is not None
