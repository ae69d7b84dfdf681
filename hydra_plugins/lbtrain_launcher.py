"""The launcher of lbtrain, in the namespace in which Hydra looks for launchers."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Run each job of a sweep as a process of its own, several at a time; `hydra/launcher=local`.

    Args:
        slots: Jobs at a time; None takes one per CPU core for CPU jobs, and one for GPU jobs.
        start_method: How job processes start: `forkserver` imports torch once for all jobs, `spawn` once for each.
    """

    def __init__(self, slots: int | None = None, start_method: str = "forkserver") -> None:
        self.slots = slots
        self.start_method = start_method

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one job per list of overrides.

        Returns:
            Their results, in order.
        """
        # Imported here: Hydra loads this file in every application where lbtrain is installed.
        from lbtrain.app.launcher import launch

        compose = self.hydra_context.config_loader.load_sweep_config
        configs = [compose(self.config, list(overrides)) for overrides in job_overrides]
        return launch(self.config, configs, job_overrides, initial_job_idx, self.slots, self.start_method)
