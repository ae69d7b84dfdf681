"""What `hydra.launcher` was asked for, checked."""

from dataclasses import dataclass
from typing import Any

from hydra.errors import CompactHydraException


@dataclass(frozen=True)
class Asked:
    """The arguments of `hydra/launcher=local`, as LocalLauncher documents them.

    Raises:
        CompactHydraException: If one is not valid.
    """

    slots: int | None = None
    devices_per_job: int | None = None
    jobs_per_device: int = 1
    skip_finished: bool | None = None
    retries: int = 0
    timeout_s: float | None = None
    start_method: str = "forkserver"

    def __post_init__(self) -> None:
        _require_whole("slots", self.slots, 1, optional=True)
        _require_whole("devices_per_job", self.devices_per_job, 1, optional=True)
        _require_whole("jobs_per_device", self.jobs_per_device, 1)
        _require_whole("retries", self.retries, 0)
        if not (self.skip_finished is None or isinstance(self.skip_finished, bool)):
            raise _refusal("skip_finished", "be true, false or null", self.skip_finished, "leave it out")
        seconds = self.timeout_s
        number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
        if seconds is not None and not (number and seconds > 0):  # neither is NaN
            raise _refusal("timeout_s", "be a number of seconds above 0, or null", seconds, "give 3600 for an hour")
        if self.start_method not in ("forkserver", "spawn"):
            raise _refusal("start_method", "be forkserver or spawn", self.start_method, "leave it out")


def _require_whole(name: str, value: Any, least: int, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        rule = f"be a whole number from {least} on{', or null' if optional else ''}"
        raise _refusal(name, rule, value, f"give {least} or more, or leave it out")


def _refusal(name: str, rule: str, value: Any, advice: str) -> CompactHydraException:
    return CompactHydraException(f"hydra.launcher.{name} must {rule}, got {value!r}; {advice}")
