"""Read each YAML of a sweep once: Hydra reads all of them again for every job that it composes."""

import copy
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository
from hydra.plugins.config_source import ConfigResult
from hydra.types import HydraContext


class ReadOnce(CachingConfigRepository):
    """A repository of configs that keeps what it has read.

    Hydra copies its repository for each composition, with what it keeps; this one stays one, and hands out copies.
    """

    def __deepcopy__(self, memo: dict[int, Any]) -> "ReadOnce":
        return self

    def load_config(self, config_path: str) -> ConfigResult | None:
        """Read a config, or return what was read.

        Args:
            config_path: Within the search path.

        Returns:
            The config; None where there is none, which a search path that grows may change.
        """
        found = super().load_config(config_path)
        if found is None:
            del self.cache[f"config_path={config_path}"]
        # Hydra merges the overrides of a job into what it gets.
        return copy.deepcopy(found)


def read_once(context: HydraContext) -> None:
    """Have Hydra compose every job of a sweep from files that are read once.

    Args:
        context: Of the sweep.
    """
    loader: Any = context.config_loader
    loader.repository = ReadOnce(loader.repository)
