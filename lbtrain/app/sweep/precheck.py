"""Check the configs of a whole sweep before its first job starts, and count the GPUs that it may use."""

import os
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict

from lbtrain.app.sweep.interrupts import start
from lbtrain.app.sweep.needs import Machine, gpu_names


def check(context: BaseContext, configs: Sequence[DictConfig]) -> Machine:
    """Validate every config in a process of its own, which has torch already.

    Args:
        context: Of `multiprocessing`; says how processes start.
        configs: One per job, each with its `hydra` node.

    Returns:
        What the jobs may use of this machine.

    Raises:
        CompactHydraException: If there are problems; the message tells them by run.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_problems, args=(sender, list(configs)), daemon=True)  # type: ignore[attr-defined]
    start(context, process)
    sender.close()
    gpus: tuple[str | None, ...] = ()
    try:
        problems, gpus = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        problems = f"checking the configs ended with exit code {process.exitcode}; its error stands above"
    if problems:
        raise CompactHydraException(problems)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cores, gpus)


def _send_problems(sender: Connection, configs: list[DictConfig]) -> None:
    from lbtrain.app.config import redacted
    from lbtrain.app.instantiate import ConfigError, validate

    setup_globals()  # the resolver of ${hydra:...}
    problems: dict[str, list[int]] = {}
    for number, config in enumerate(configs, start=1):
        HydraConfig.instance().set_config(config)
        with open_dict(config):
            del config["hydra"]
        try:
            validate(config)
        except ConfigError as error:
            problems.setdefault(redacted(str(error), config), []).append(number)
    lines = [f"{_runs(numbers, len(configs))}: {problem}" for problem, numbers in problems.items()]
    with suppress(BrokenPipeError):  # Ctrl-C has ended the one who asked
        sender.send(("\n".join(lines), _gpus()))
    sender.close()


def _gpus() -> tuple[str | None, ...]:
    import torch

    if torch.backends.mps.is_available():
        return (None,)
    return gpu_names(torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES"))


def _runs(numbers: list[int], total: int) -> str:
    if len(numbers) == total:
        return "all runs"
    return f"run{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {total}"
