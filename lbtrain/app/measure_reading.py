"""Read a checkpoint for measuring: complete what it lacks, say what does not fit, write nothing."""

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lbtrain._lightning import Trainer, pl, plugins
from lbtrain.app.signatures import ConfigError

# Parts of a checkpoint that Lightning insists on, and a file with the weights alone lacks.
_EMPTY: dict[str, Any] = {"optimizer_states": [], "lr_schedulers": []}


@dataclass
class Facts:
    """What a checkpoint holds beside the weights."""

    epoch: int | None = None
    global_step: int | None = None
    has_optimizer: bool = True
    """Unknown under strategies that read shards themselves, which need one."""
    groups: list[list[frozenset[str]]] = field(default_factory=list)
    """Names of the hyperparameters, by optimizer and parameter group."""


class Reading(plugins.CheckpointIO):
    """Read checkpoints as before, those without an optimizer too; write and remove none."""

    def __init__(self) -> None:
        self._own: Any = None
        self.facts = Facts()

    def serve(self, trainer: Trainer) -> None:
        """Take the place of what a Trainer reads and writes checkpoints with.

        Args:
            trainer: The Trainer, before it fits.
        """
        self._own, trainer.strategy.checkpoint_io = trainer.strategy.checkpoint_io, self

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read one, note what it holds, and complete it.

        Args:
            path: Of the file.
            *args: As Lightning gives them.
            **kwargs: As Lightning gives them.

        Returns:
            The checkpoint, with an empty list where it has no optimizer or no scheduler.

        Raises:
            ConfigError: If it is not one of Lightning.
        """
        way_out = "give a file that ModelCheckpoint or Trainer.save_checkpoint has written"
        try:
            loaded = self._own.load_checkpoint(path, *args, **kwargs)
        except (pickle.UnpicklingError, EOFError, RuntimeError, KeyError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read as a checkpoint ({_cause(error)}): {way_out}") from error
        if not isinstance(loaded, Mapping) or not isinstance(loaded.get("state_dict"), Mapping):
            kind = f"keys: {', '.join(map(str, list(loaded)[:5]))}" if isinstance(loaded, Mapping) else type(loaded)
            raise ConfigError(f"{path} is not a checkpoint of Lightning, it has no state_dict ({kind}): {way_out}")
        states = loaded.get("optimizer_states") or []
        groups = [[frozenset(map(str, g)) for g in state.get("param_groups", [])] for state in states]
        self.facts = Facts(loaded.get("epoch"), loaded.get("global_step"), bool(states), groups)
        return {"pytorch-lightning_version": pl.__version__, "global_step": 0, "epoch": 0, **_EMPTY, **loaded}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write nothing."""

    def remove_checkpoint(self, path: Any) -> None:
        """Remove nothing."""


def explained(error: RuntimeError, way_out: str) -> ConfigError | None:
    """Say in one line that weights do not fit.

    Args:
        error: What loading has raised.
        way_out: What to do.

    Returns:
        The refusal; None if the error is about something else.
    """
    text = str(error)
    if "loading state_dict" not in text:
        return None
    sizes = re.search(
        r"size mismatch for (\S+): copying a param with shape torch.Size\((.*?)\) from checkpoint, "
        r"the shape in current model is torch.Size\((.*?)\)",
        text,
    )
    keys = re.search(r"(Missing|Unexpected) key\(s\) in state_dict: \"([^\"]+)\"", text)
    if sizes:
        what = f"{sizes[1]} has shape {sizes[2]} in the checkpoint and {sizes[3]} in the model"
    elif keys:
        what = f"{keys[2]} is only in the {'model' if keys[1] == 'Missing' else 'checkpoint'}"
    else:
        what = text.splitlines()[0]
    return ConfigError(f"the checkpoint does not fit the model: {what}; {way_out}")


def _cause(error: Exception) -> str:
    refused = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
    if refused:
        return f"it holds {refused[1]}, which torch.load refuses: allow it with torch.serialization.add_safe_globals"
    # Torch's own first line advises to load the file without any check.
    unpickled = re.search(r"WeightsUnpickler error:\s*(.+)", str(error))
    if unpickled:
        return f"torch.load: {unpickled[1].strip()}"
    return (str(error).strip() or type(error).__name__).splitlines()[0]
