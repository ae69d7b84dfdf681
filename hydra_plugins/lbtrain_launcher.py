"""The launcher of lbtrain, in the namespace in which Hydra looks for launchers."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class LocalLauncher(Launcher):
    """Run each job of a sweep as a process of its own, several at a time; `hydra/launcher=local`.

    Args:
        slots: Jobs at a time at most; None: as many as there are devices for (16 on CPU cores).
        devices_per_job: GPUs of a job, or CPU cores of one that has no GPU; None: what its trainer asks for.
        jobs_per_device: Jobs that share a GPU or a core.
        skip_finished: Whether jobs that an earlier sweep has finished in the same directory are left alone, and others
            go on from their last checkpoint; None: exactly when hydra.sweep.dir is given on the command line.
        retries: More attempts at a job that has failed, each from its last checkpoint.
        timeout_s: Seconds after which an attempt is ended and has failed; None: any.
        start_method: How job processes start: `forkserver` imports torch once for all jobs, `spawn` once for each.
    """

    def __init__(
        self,
        slots: int | None = None,
        devices_per_job: int | None = None,
        jobs_per_device: int = 1,
        skip_finished: bool | None = None,
        retries: int = 0,
        timeout_s: float | None = None,
        start_method: str = "forkserver",
    ) -> None:
        self.arguments = (slots, devices_per_job, jobs_per_device, skip_finished, retries, timeout_s, start_method)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run one job per list of overrides.

        Returns:
            Their results, in order.
        """
        # Imported here: Hydra loads this file in every application where lbtrain is installed.
        from lbtrain.app.sweep.asked import Asked
        from lbtrain.app.sweep.launcher import launch

        asked = Asked(*self.arguments)
        compose = self.hydra_context.config_loader.load_sweep_config
        configs = [compose(self.config, list(overrides)) for overrides in job_overrides]
        return launch(self.config, configs, job_overrides, initial_job_idx, asked)
