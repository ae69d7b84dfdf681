"""Ranks that must not start: those that would run a whole sweep each."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from lbtrain.app.signatures import ConfigError

if TYPE_CHECKING:
    from lbtrain._lightning import Trainer

# Launchers under which a scheduler starts the ranks of a job, one per task.
_SUBMITIT = "submitit"
# Strategies by whose names Lightning starts ranks without running the command again.
_FORKING = ("spawn", "fork", "notebook")


def refuse_shared_process(trainer: "Trainer") -> None:
    """Refuse ranks that Lightning would start as copies of a command that runs a whole sweep.

    Args:
        trainer: As the config has it, before `fit`.

    Raises:
        ConfigError: If this process runs the jobs of a sweep itself, and the strategy starts such ranks.
    """
    copies = type(trainer.strategy.launcher).__name__ == "_SubprocessScriptLauncher"
    if copies and trainer.world_size > 1 and HydraConfig.get().mode == RunMode.MULTIRUN:
        launcher = HydraConfig.get().runtime.choices.get("hydra/launcher")
        raise ConfigError(_refusal(str(launcher), type(trainer.strategy).__name__))


def ranks_problem(settings: Mapping[str, Any], launcher: str, tasks: int) -> str | None:
    """Return why a job's ranks cannot be started by a launcher, as far as the config shows it.

    Args:
        settings: The job's `trainer` node.
        launcher: The choice of `hydra/launcher`, none of which is `local`.
        tasks: Processes that the launcher starts for each job, on each node.

    Returns:
        One line that says what to type instead; None if there is one rank, or each has its task.
    """
    strategy, on_node = _strategy(settings), devices(settings)
    if strategy is None or on_node * int(settings.get("num_nodes") or 1) < 2:
        return None
    if launcher.startswith(_SUBMITIT) and launcher != "submitit_local":
        if tasks == on_node:
            return None
        return (
            f"hydra/launcher={launcher} starts {tasks} task(s) per node for the {on_node} ranks of a job; "
            f"give hydra.launcher.tasks_per_node={on_node}"
        )
    return _refusal(launcher, strategy)


def refuse_ranks_of_a_sweep() -> None:
    """Refuse a sweep that torchrun or srun has started once per rank.

    Raises:
        ConfigError: If this process is one of several ranks.
    """
    by, ranks = started_by()
    if by and ranks > 1:
        script = "; in a batch script: export SLURM_JOB_NAME=interactive" if by == "srun" else ""
        raise ConfigError(
            f"{by} has started this sweep {ranks} times, and each would run all of it; start it once, without {by}: "
            f"hydra/launcher=local starts the ranks of each job itself{script}"
        )


def started_by() -> tuple[str, int]:
    """Tell which program has started this process as a rank.

    Returns:
        `torchrun`, `srun` or nothing, and how many ranks it has started.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return "torchrun", int(os.environ.get("WORLD_SIZE", "1"))
    # Lightning's own rule: a shell in an allocation is called interactive or bash.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    if {"SLURM_PROCID", "SLURM_NTASKS"} <= set(os.environ) and not interactive:
        return "srun", int(os.environ["SLURM_NTASKS"])
    return "", 1


def devices(settings: Mapping[str, Any]) -> int:
    """Count the devices that a job takes on each node.

    Args:
        settings: The job's `trainer` node.

    Returns:
        How many; for `auto` and -1 as many GPUs as there are, if GPUs are meant.
    """
    given = settings.get("devices", "auto")
    if isinstance(given, int) and given >= 0:
        return given
    if given not in (-1, "-1", "auto", None):
        return len(given.strip(", ").split(",")) if isinstance(given, str) and "," in given else _listed(given)
    if settings.get("accelerator") not in ("gpu", "cuda", "auto", None):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _listed(given: Any) -> int:
    return int(given) if isinstance(given, str) else len(given)


def _strategy(settings: Mapping[str, Any]) -> str | None:
    """Return the name of a strategy that starts ranks by running the command again; None for the others."""
    strategy = settings.get("strategy") or "auto"
    if isinstance(strategy, Mapping):
        start = str(strategy.get("start_method", "popen"))
        name = str(strategy.get("_target_", "")).rpartition(".")[2]
        return name if start == "popen" and not name.startswith("SingleDevice") else None
    name = str(strategy)
    return None if any(word in name for word in _FORKING) else ("DDPStrategy" if name in ("auto", "ddp") else name)


def _refusal(launcher: str, strategy: str) -> str:
    runs = "starts one process per job" if launcher.startswith(_SUBMITIT) else "runs jobs in one process"
    ranks = f"each rank that {strategy} starts"
    return f"hydra/launcher={launcher} {runs}, and {ranks} would run the whole sweep again; use hydra/launcher=local"
