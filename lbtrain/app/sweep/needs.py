"""What a job of a sweep takes of the machine, read off its config."""

from dataclasses import dataclass
from typing import Any, Literal

from omegaconf import DictConfig, OmegaConf

Kind = Literal["cpu", "gpu", "other"]

_ACCELERATORS: dict[str, Kind] = {"cpu": "cpu", "gpu": "gpu", "cuda": "gpu", "mps": "gpu"}
# What Lightning takes for "as many as there are".
_ALL = (-1, "-1", "auto")


@dataclass(frozen=True)
class Machine:
    """What jobs share.

    Args:
        cores: CPU cores that this process may use.
        gpus: GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; None stands for one GPU that is not
            CUDA's, and cannot be named.
    """

    cores: int
    gpus: tuple[str | None, ...] = ()

    def devices(self, kind: Kind) -> int:
        """Return how many devices of a kind there are; of one that is not known here, one that nobody shares."""
        return {"cpu": self.cores, "gpu": len(self.gpus), "other": 1}[kind]


@dataclass(frozen=True)
class Need:
    """What one job takes.

    Args:
        kind: Of device; a core is a device, too.
        count: Devices.
        processes: Among which its threads are shared out.
        pinned: Positions of the very devices that the config asks for; empty: any will do.
    """

    kind: Kind
    count: int
    processes: int = 1
    pinned: tuple[int, ...] = ()


def gpu_names(count: int, visible: str | None) -> tuple[str, ...]:
    """Return the names of the GPUs that CUDA shows to this process.

    Args:
        count: How many it shows.
        visible: CUDA_VISIBLE_DEVICES of this process; None where it is not set.

    Returns:
        Indices or UUIDs, as the variable has them.
    """
    names = [str(n) for n in range(count)] if visible is None else [name.strip() for name in visible.split(",")]
    return tuple(names[:count])


def need(config: DictConfig, machine: Machine, devices_per_job: int | None) -> Need:
    """Read off a job's config what it takes.

    Args:
        config: The composed config of the job.
        machine: On which it is to run.
        devices_per_job: GPUs or cores; None: what its trainer asks for.

    Returns:
        Its need, which an empty machine can meet.

    Raises:
        ValueError: If the machine cannot meet it; the message names the argument, the rule, the value and what to do.
    """
    trainer = config.get("trainer") or {}
    _refuse_nodes(trainer)
    kind = _kind(str(trainer.get("accelerator", "auto")), machine)
    there = machine.devices(kind)
    asked = _asked(trainer.get("devices", "auto"), kind, there if kind == "gpu" else 1, trainer)
    if isinstance(asked, tuple):
        return Need(kind, len(asked), len(asked), asked)
    if devices_per_job is None:
        # More ranks than cores are a rehearsal for GPUs, and as good as it gets here.
        return Need(kind, asked if kind == "gpu" else min(asked, there), asked)
    if devices_per_job > there:
        raise ValueError(
            f"hydra.launcher.devices_per_job must be at most the {_named(there, kind)} of this machine, got "
            f"{devices_per_job}; give fewer, or null for what each job's trainer asks for"
        )
    if kind == "gpu" and asked > devices_per_job and trainer.get("devices") not in _ALL:
        raise ValueError(
            f"hydra.launcher.devices_per_job must be at least trainer.devices, got {devices_per_job} for "
            f"trainer.devices={asked}; give {asked}, or null for what each job's trainer asks for"
        )
    return Need(kind, devices_per_job, devices_per_job if trainer.get("devices") in _ALL and kind == "gpu" else asked)


def _kind(accelerator: str, machine: Machine) -> Kind:
    if accelerator == "auto":
        return "gpu" if machine.gpus else "cpu"
    kind = _ACCELERATORS.get(accelerator, "other")
    if kind == "gpu" and not machine.gpus:
        raise ValueError(
            f"trainer.accelerator must be a device that this machine has, got {accelerator}, and torch sees no GPU "
            "here; use trainer=cpu, or look at CUDA_VISIBLE_DEVICES and the driver"
        )
    return kind


def _asked(devices: Any, kind: Kind, there: int, trainer: Any) -> int | tuple[int, ...]:
    """Return how many devices a trainer asks for, or which.

    Raises:
        ValueError: If the machine has no such devices.
    """
    if devices in _ALL or kind == "other":
        return there
    count, pinned = _read(devices)
    if count < 1:
        raise ValueError(f"trainer.devices must be at least 1, got {devices!r}; give 1, or -1 for all GPUs")
    if kind != "gpu":
        return count
    if count > there or any(not 0 <= device < there for device in pinned):
        raise ValueError(
            f"trainer.devices must be among the {_named(there, kind)} of this machine, got {trainer.get('devices')}; "
            "ask for fewer, or use a cluster (docs/clusters.md)"
        )
    return pinned or count


def _read(devices: Any) -> tuple[int, tuple[int, ...]]:
    """Return how many devices are meant, and which, where that is said.

    Raises:
        ValueError: If they are no numbers.
    """
    if isinstance(devices, str) and "," in devices:
        devices = [part for part in devices.split(",") if part.strip()]
    listed = OmegaConf.is_list(devices) or isinstance(devices, list)
    try:
        pinned = tuple(int(device) for device in devices) if listed else ()
        return len(pinned) if listed else int(devices), pinned
    except (TypeError, ValueError):
        raise ValueError(f"trainer.devices must be a number or a list of numbers, got {devices!r}; give 1") from None


def _refuse_nodes(trainer: Any) -> None:
    nodes = trainer.get("num_nodes", 1)
    if isinstance(nodes, int) and nodes > 1:
        raise ValueError(
            f"trainer.num_nodes must be 1 under hydra/launcher=local, which knows this machine alone, got {nodes}; "
            "use hydra/launcher=submitit_slurm, or start the run on each machine yourself (docs/clusters.md)"
        )


def _named(count: int, kind: Kind) -> str:
    word = {"cpu": "CPU core", "gpu": "GPU", "other": "device"}[kind]
    return f"{count} {word}{'' if count == 1 else 's'}"
