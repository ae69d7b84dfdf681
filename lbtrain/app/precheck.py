"""Check the configs of a whole sweep before its first job starts."""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import setup_globals
from hydra.errors import CompactHydraException
from omegaconf import DictConfig, open_dict


def check(context: BaseContext, configs: Sequence[DictConfig]) -> None:
    """Validate every config in a process of its own, which has torch already.

    Args:
        context: Of `multiprocessing`; says how processes start.
        configs: One per job, each with its `hydra` node.

    Raises:
        CompactHydraException: If there are problems; the message tells them by run.
    """
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_problems, args=(sender, list(configs)), daemon=True)  # type: ignore[attr-defined]
    process.start()
    sender.close()
    try:
        problems = receiver.recv()
        process.join()
    except EOFError:
        process.join()
        problems = f"checking the configs ended with exit code {process.exitcode}; its error stands above"
    if problems:
        raise CompactHydraException(problems)


def _send_problems(sender: Connection, configs: list[DictConfig]) -> None:
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
            problems.setdefault(str(error), []).append(number)
    lines = [f"{_runs(numbers, len(configs))}: {problem}" for problem, numbers in problems.items()]
    sender.send("\n".join(lines))
    sender.close()


def _runs(numbers: list[int], total: int) -> str:
    if len(numbers) == total:
        return "all runs"
    return f"run{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))} of {total}"
