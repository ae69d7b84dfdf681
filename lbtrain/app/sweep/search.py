"""Sweepers that search, such as Optuna's: which way is better, and what becomes of runs that fail."""

import logging
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

# Last parts of the names of metrics that say which way is better.
_BETTER = {"loss": "minimize", "acc": "maximize"}


class SearchingSweeper(Sweeper):
    """Say at the end of a search which of its runs have failed, also where it goes on without them.

    Args:
        inner: The sweeper.
        results: What its launchers return, filled as they run.
        config: The sweep's own, with its `hydra` node.
    """

    def __init__(self, inner: Sweeper, results: Sequence[Sequence[JobReturn]], config: DictConfig) -> None:
        self.inner, self.results, self.config = inner, results, config

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the inner sweeper is set up already."""

    def sweep(self, arguments: list[str]) -> Any:
        """Run the search.

        Returns:
            What the sweeper returns.

        Raises:
            CompactHydraException: If a run has failed; the search has gone on without it, as far as it may.
            ValueError: The sweeper's own.
            RuntimeError: The sweeper's own.
        """
        try:
            returned = self.inner.sweep(arguments)
        except ValueError as error:
            if self._valued():
                raise
            raise CompactHydraException(self._nothing()) from error
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise
            # hydra-optuna-sweeper 1.3 takes this from a grid that is done only where its last run has not failed.
            raise CompactHydraException(
                "a run failed, and the grid sampler stops there; a sweep without hydra/sweeper=optuna goes on"
            ) from error
        if self._valued() < len(self._all()):
            lost = len(self._all()) - self._valued()
            raise CompactHydraException(f"{lost} of {len(self._all())} runs failed; the search went on without them")
        return returned

    def _all(self) -> list[JobReturn]:
        return [result for batch in self.results for result in batch]

    def _valued(self) -> int:
        return sum(r.status == JobStatus.COMPLETED and isinstance(r.return_value, int | float) for r in self._all())

    def _nothing(self) -> str:
        done = sum(result.status == JobStatus.COMPLETED for result in self._all())
        if done:
            return f"none of the {done} finished runs has the metric objective={self.config.objective}"
        return f"all {len(self._all())} runs of this search failed"


def quiet() -> None:
    """Keep off the screen what the libraries under Optuna 2 say to its authors and about their own plugins."""
    # Optuna 2 works with SQLAlchemy up to 1.4, which tells whoever calls it to be ready for 2.
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")
    logging.getLogger("alembic").setLevel(logging.WARNING)


def is_search(config: DictConfig) -> bool:
    """Tell whether the sweeper of a config is told the runs' objectives.

    Args:
        config: The sweep's own, with its `hydra` node.

    Returns:
        True if it has a direction, as Optuna's has.
    """
    return config.hydra.sweeper.get("direction") is not None


def worst(config: DictConfig) -> float | None:
    """Return the value that no run can be worse than.

    Args:
        config: The sweep's own, with its `hydra` node.

    Returns:
        Infinity where less is better, else minus infinity; None if nothing is searched for.
    """
    return {"minimize": float("inf"), "maximize": float("-inf")}.get(_direction(config))


def refuse_wrong_way(config: DictConfig) -> None:
    """Refuse a search for the worst accuracy or the largest loss: Optuna minimizes unless told otherwise.

    Args:
        config: The sweep's own, with its `hydra` node.

    Raises:
        CompactHydraException: If the direction is at odds with the objective.
    """
    objective, direction = str(config.get("objective")), _direction(config)
    better = _BETTER.get(objective.rpartition("/")[2])
    if better and direction and better != direction:
        raise CompactHydraException(
            f"objective={objective} is at its best when one can {better} it, but hydra.sweeper.direction={direction}; "
            f"give hydra.sweeper.direction={better}"
        )


def _direction(config: DictConfig) -> str:
    given = config.hydra.sweeper.get("direction")
    return str(getattr(given, "name", given)) if is_search(config) else ""
