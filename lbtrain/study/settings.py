"""Which settings of a sweep vary."""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import pandas as pd

from lbtrain.study.load import ARGUMENT, CONFIG
from lbtrain.study.methods import members
from lbtrain.study.once import once
from lbtrain.study.settled import given, settled

Row: TypeAlias = dict[str, Any]

# Where a run writes, and what a logger calls it, differ from run to run and change no number.
_PLACES = ("dirpath", "save_dir", "root_dir", "default_root_dir", "log_dir", "ckpt_path", "filename", "tags", "notes")
_SILENT = (
    "logger.",
    "callbacks.checkpoint.",
    "callbacks.random_state.",
    "trainer.enable_",
    "trainer.log_every_n_steps",
)


@once
def rows(table: pd.DataFrame) -> list[Row]:
    """Take the rows out of a table; a missing value is None.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        One dict per run.
    """
    records = table.to_dict("records")
    return [{str(key): None if _is_nan(value) else value for key, value in row.items()} for row in records]


@once
def varying(table: pd.DataFrame) -> list[str]:
    """List the config keys that differ between the runs.

    Left out are copies made by interpolation (`model.optimizer.lr` beside `optimizer.lr`, `warmup.scaled` beside the
    argument that it is looked up for), arguments that the class of their node settles (Adam's betas, where the other
    runs use SGD), places on disk, and what only talks.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys without the `config.` prefix, sorted.
    """
    recorded = _recorded(table)
    names = {key.removeprefix(CONFIG) for key in table.columns if key.startswith(CONFIG)}
    keys = sorted(names, key=lambda key: _foremost(key, names))
    values = {key: tuple(repr(row.get(CONFIG + key)) for row in recorded) for key in keys}
    seen: set[tuple[str, ...]] = set()
    found = []
    for key in keys:
        last = key.rpartition(".")[2]
        silent = last in _PLACES or key.startswith(_SILENT)
        if silent or len(set(values[key])) < 2 or values[key] in seen:
            continue
        seen.add(values[key])
        if not _settled_by_class(key, values):
            found.append(key)
    return sorted(found)


@once
def other_keys(table: pd.DataFrame) -> list[str]:
    """List the varying keys that optimizer, rate, batch, SAM's family and seed do not settle.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Keys without the `config.` prefix, sorted; empty for a sweep over those axes only. What stands below the
        callback of a method is the method's own, see `method_options`. A key at the top of the config that tells the
        others, such as the name of a run of a gallery, stands for all of them.
    """
    recorded = _recorded(table)
    nodes, asked = [method_nodes(row) for row in recorded], given(recorded)
    found = [
        key
        for key in varying(table)
        if not settled(
            recorded,
            [None if below(key, own) else row.get(CONFIG + key) for row, own in zip(recorded, nodes, strict=True)],
            key in asked,
        )
    ]
    name = _name_of_all(found, recorded)
    return found if name is None else [name]


def _name_of_all(keys: Sequence[str], recorded: Sequence[Row]) -> str | None:
    """Return the key at the top of the config whose value tells those of all others, as the name of a run does."""
    everything = [tuple(repr(row.get(CONFIG + key)) for key in keys) for row in recorded]
    for key in keys:
        values = {repr(row.get(CONFIG + key)) for row in recorded}
        if "." not in key and len(values) == len(set(everything)):
            return key
    return None


@once
def method_options(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """List the arguments of each method that vary among its runs, and that its radius and the axes do not settle.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Method to names of arguments, without the `method.` prefix; methods without any are left out.
    """
    recorded = _recorded(table)
    names = sorted(key for key in table.columns if key.startswith(ARGUMENT))
    found = {}
    for method in sorted({row["method"] for row in recorded if row["method"]}):
        own = [row for row in recorded if row["method"] == method]
        asked = {ARGUMENT + key.rpartition(".")[2] for key in given(own) if key.startswith("callbacks.")}
        options = [key for key in names if not settled(own, [row.get(key) for row in own], key in asked)]
        if options:
            found[method] = tuple(key.removeprefix(ARGUMENT) for key in options)
    return found


def extra_columns(table: pd.DataFrame) -> dict[str, str]:
    """Name the columns of the table that vary beside the axes, for people.

    Args:
        table: As `load_sweep` gives it.

    Returns:
        Column to a name that no other column has, such as "config.optimizer.lr" to "optimizer.lr".
    """
    short = short_names(other_keys(table))
    found = {CONFIG + key: name if name not in table.columns else key for key, name in short.items()}
    options = sorted({name for names in method_options(table).values() for name in names})
    taken = {*table.columns, *found.values()}
    return found | {ARGUMENT + name: ARGUMENT + name if name in taken else name for name in options}


def method_nodes(row: Row) -> list[str]:
    """Find where in its config a run's method stands.

    Args:
        row: The run.

    Returns:
        Keys of nodes, such as "callbacks.gsam".
    """
    return list(members({key.removeprefix(CONFIG): value for key, value in row.items() if key.startswith(CONFIG)}))


def below(key: str, nodes: Sequence[str]) -> bool:
    """Tell whether a key stands at or below one of these nodes.

    Args:
        key: Such as "callbacks.gsam.alpha".
        nodes: Such as "callbacks.gsam".

    Returns:
        Whether it does.
    """
    return any(f"{key}.".startswith(f"{node}.") for node in nodes)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Shorten dotted keys to as few last parts as tell them apart; `a.b._target_` goes by `b`.

    Args:
        keys: Such as "model.lr", "data.batch_size".

    Returns:
        Key to short name, such as "lr", "batch_size".
    """
    names = {}
    bare = [key.removesuffix("._target_") for key in keys]
    for key, whole in zip(keys, bare, strict=True):
        parts = whole.split(".")
        for start in reversed(range(len(parts))):
            names[key] = ".".join(parts[start:])
            if sum(f".{other}".endswith(f".{names[key]}") for other in bare) == 1:
                break
    return names


def _recorded(table: pd.DataFrame) -> list[Row]:
    return [row for row in rows(table) if row["status"] in {"finished", "failed"}]


def _settled_by_class(key: str, values: dict[str, tuple[str, ...]]) -> bool:
    # Whether each class that the key's node takes (none among them) goes with one value.
    node = key.rpartition(".")[0]
    while node and f"{node}._target_" not in values:
        node = node.rpartition(".")[0]
    classes = values.get(f"{node}._target_", ())
    if key.endswith("_target_") or len(set(classes)) < 2:
        return False
    return len(set(zip(classes, values[key], strict=True))) == len(set(classes))


def _foremost(key: str, names: set[str]) -> tuple[bool, bool, int, str]:
    """Return the order in which a copy is kept: the seed, arguments of a class, what stands high in the config."""
    parents = key.split(".")[:-1]
    argument = any(f"{'.'.join(parents[:n])}._target_" in names for n in range(1, len(parents) + 1))
    return key != "seed", not argument, key.count("."), key


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)
