"""Which jobs of a sweep fit on this machine together: a queue for free GPUs and CPU cores."""

from collections.abc import Sequence
from dataclasses import dataclass

from lbtrain.app.sweep.needs import Kind, Machine, Need


@dataclass(frozen=True)
class Lease:
    """Devices that a job holds, by position."""

    kind: Kind
    devices: tuple[int, ...]


class Slots:
    """Hand out devices, and take them back.

    Args:
        machine: What there is.
        jobs_per_device: Jobs that share one device.
        limit: Jobs at a time on the whole machine; None: as many as fit.
    """

    def __init__(self, machine: Machine, jobs_per_device: int = 1, limit: int | None = None) -> None:
        kinds: tuple[Kind, ...] = ("cpu", "gpu", "other")
        self._free = {kind: [jobs_per_device] * machine.devices(kind) for kind in kinds}
        self._limit, self._running = limit, 0

    def fill(self, waiting: Sequence[Need]) -> list[tuple[int, Lease]]:
        """Take devices for the jobs that can start now.

        A job that does not fit keeps those after it off the devices that it may need, so small jobs never starve a
        large one.

        Args:
            waiting: What each waiting job takes, in the order in which they should start.

        Returns:
            Position among the waiting jobs, and devices, of each that starts.
        """
        kept: dict[Kind, set[int]] = {kind: set() for kind in self._free}
        started = []
        for position, need in enumerate(waiting):
            if self._running == self._limit:
                break
            lease = self._take(need, kept[need.kind])
            if lease:
                started.append((position, lease))
            else:
                kept[need.kind].update(need.pinned or range(len(self._free[need.kind])))
        return started

    def give_back(self, lease: Lease) -> None:
        """Free the devices of a job that has ended.

        Args:
            lease: What it held.
        """
        self._running -= 1
        for device in lease.devices:
            self._free[lease.kind][device] += 1

    def _take(self, need: Need, kept: set[int]) -> Lease | None:
        free = self._free[need.kind]
        choice = [d for d in need.pinned or range(len(free)) if free[d] and d not in kept]
        if len(choice) < need.count:
            return None
        # The emptiest first: jobs that share devices are spread over all of them.
        lease = Lease(need.kind, tuple(sorted(sorted(choice, key=lambda d: -free[d])[: need.count])))
        for device in lease.devices:
            free[device] -= 1
        self._running += 1
        return lease


def at_a_time(needs: Sequence[Need], slots: Slots) -> int:
    """Count the jobs that run together at most.

    Args:
        needs: What each job takes.
        slots: Unused ones; afterwards they are used up.

    Returns:
        Their number, at least 1.
    """
    return max(1, len(slots.fill(sorted(needs, key=lambda need: need.count))))


def threads(cores: int, together: int, processes: int) -> int:
    """Return the threads of one process, so that all that run together have a core each.

    Args:
        cores: That this process may use.
        together: Jobs at a time.
        processes: Of the job.

    Returns:
        At least 1.
    """
    return max(1, cores // (together * processes))


def mask(lease: Lease, machine: Machine, pinned: bool) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES must say in a job's process.

    Args:
        lease: What the job holds.
        machine: On which it runs.
        pinned: Whether its config counts the devices of this process itself.

    Returns:
        Names of GPUs, joined by commas; None where the variable stays as it is.
    """
    names = [machine.gpus[device] for device in lease.devices] if lease.kind == "gpu" and not pinned else []
    return ",".join(name for name in names if name is not None) or None
