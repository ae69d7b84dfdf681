"""Sweeps under any launcher: checked before the first job starts, compared after the last has ended."""

import logging
import math
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from hydra_plugins.lbtrain_launcher import LocalLauncher
from lbtrain.app.sweep import claim
from lbtrain.app.sweep import launcher as local
from lbtrain.app.sweep.precheck import check
from lbtrain.app.sweep.read_once import read_once
from lbtrain.app.sweep.refusals import ranks_problem, refuse_ranks_of_a_sweep
from lbtrain.app.sweep.search import SearchingSweeper, is_search, quiet, refuse_wrong_way, worst
from lbtrain.records import SUMMARY_NAME

_log = logging.getLogger(__name__)
_LOCAL = f"{LocalLauncher.__module__}.{LocalLauncher.__qualname__}"


def watch(plugins: Plugins) -> None:
    """Have every sweep that Hydra starts from now on checked, whatever its launcher and its sweeper.

    Args:
        plugins: Hydra's own, which make both.
    """
    sweepers, launchers = plugins.instantiate_sweeper, plugins.instantiate_launcher
    made: list[CheckedLauncher] = []

    def launcher(hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
        inner = launchers(hydra_context=hydra_context, task_function=task_function, config=config)
        made.append(CheckedLauncher(inner, hydra_context, config))
        return made[-1]

    def sweeper(*, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Sweeper:
        refuse_ranks_of_a_sweep()
        refuse_wrong_way(config)
        quiet()
        claim.note(Path(str(config.hydra.sweep.dir)))
        read_once(hydra_context)
        inner = sweepers(hydra_context=hydra_context, task_function=task_function, config=config)
        return SearchingSweeper(inner, [entry.results for entry in made], config) if is_search(config) else inner

    plugins.instantiate_sweeper, plugins.instantiate_launcher = sweeper, launcher  # type: ignore[method-assign]


class CheckedLauncher(Launcher):
    """Check all jobs of a launcher before the first starts, and keep what they return.

    The local launcher checks its jobs itself.

    Args:
        inner: The launcher that runs them.
        context: Of Hydra.
        config: The sweep's own, with its `hydra` node.
    """

    def __init__(self, inner: Launcher, context: HydraContext, config: DictConfig) -> None:
        self.inner, self.context, self.config = inner, context, config
        self.results: list[JobReturn] = []

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Do nothing: the inner launcher is set up already."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one job per list of overrides.

        Returns:
            Their results, in order; for a search with the worst value in the place of NaN.
        """
        # By its name in the config: Hydra's scan makes a second class of the same file, and submitit has one so called.
        own = self.config.hydra.launcher.get("_target_") == _LOCAL
        launch = self.inner.launch if own else self._launch
        returned = launch(job_overrides, initial_job_idx)
        claim.keep()
        _tell_worst(returned, self.config, initial_job_idx)
        self.results += returned
        return returned

    def _launch(self, job_overrides: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        _check_jobs(self.context, self.config, job_overrides, first)
        try:
            return self.inner.launch(job_overrides, first)
        except Exception as error:
            told = _in_one_line(error, self.config)
            if told is error:
                raise
            raise told from error
        finally:
            _note(Path(str(self.config.hydra.sweep.dir)).absolute())


def _note(sweep: Path) -> None:
    """Have the sweep compared at the end, if any of its jobs has left a record."""
    if sweep not in local._started and any(sweep.rglob(SUMMARY_NAME)):
        local._started.append(sweep)


def _check_jobs(context: HydraContext, config: DictConfig, job_overrides: Sequence[Sequence[str]], first: int) -> None:
    """Compose and check the config of every job.

    Raises:
        CompactHydraException: If there is a problem; no job has started then.
    """
    name = str(config.hydra.runtime.choices.get("hydra/launcher"))
    tasks = int(config.hydra.launcher.get("tasks_per_node") or 1)
    configs = [context.config_loader.load_sweep_config(config, list(overrides)) for overrides in job_overrides]
    for number, job in enumerate(configs, start=first):
        problem = ranks_problem(job.get("trainer") or {}, name, tasks)
        if problem:
            raise CompactHydraException(problem)
        with open_dict(job):
            job.hydra.job.num = number
            job.hydra.runtime.output_dir = str(Path(str(config.hydra.sweep.dir)) / str(job.hydra.sweep.subdir))
    check(multiprocessing.get_context("spawn"), configs)


def _in_one_line(error: Exception, config: DictConfig) -> Exception:
    """Return the error of a launcher's own machinery without its traceback, with what to do; others as they are."""
    if not type(error).__module__.startswith(("submitit.", "joblib.")):
        return error
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return CompactHydraException(
        f"a job of this sweep has died without a result: {lines[0]}\nOthers may still run; compare the runs when they "
        f"are done: python -m lbtrain.study {config.hydra.sweep.dir}"
    )


def _tell_worst(results: Sequence[JobReturn], config: DictConfig, first: int) -> None:
    """Put the worst value there is in the place of NaN: a search would take NaN for no result, and try there again."""
    if worst(config) is None:
        return
    for number, result in enumerate(results, start=first):
        done = result.status == JobStatus.COMPLETED
        if done and isinstance(result.return_value, float) and math.isnan(result.return_value):
            _log.warning(
                "run %d has diverged: %s is nan, told to the search as %s", number + 1, config.objective, worst(config)
            )
            result.return_value = worst(config)
