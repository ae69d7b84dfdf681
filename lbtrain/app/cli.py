"""The command line: `train.py` and the console script `lbtrain` are the same."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import CompactHydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hydra_plugins.lbtrain_launcher import LocalLauncher
from lbtrain.app import measure, shared_place
from lbtrain.app.commands import COMMANDS, command, refuse_unknown_word, usage
from lbtrain.app.config import redacted
from lbtrain.app.instantiate import ConfigError, nearest
from lbtrain.app.own import import_own_modules
from lbtrain.app.reader import may_stop_reading
from lbtrain.app.sweep import after_sweep, claim, interrupts, launcher

# What a shell reports of a program that Ctrl-C has ended.
_INTERRUPTED = 130


@hydra.main(version_base="1.3", config_path="pkg://lbtrain.conf", config_name="train")
def run(cfg: DictConfig) -> float | None:
    """Train one composed config.

    Args:
        cfg: The composed config.

    Returns:
        The metric named by `objective`, for a sweeper; None on ranks that hold no metrics.
    """
    import_own_modules(cfg)
    # torch is imported here, so `--help` and `--cfg job` answer without it.
    from lbtrain.app.train import train

    with _ending(cfg):
        return train(cfg).get(cfg.objective)


def run_measure(words: Sequence[str]) -> None:
    """Measure a checkpoint, or several with `-m`; the process ends with code 2 if the command line is wrong.

    Args:
        words: The command line after `measure`.
    """
    if measure.wants_help(words):
        print(measure.USAGE)
        return
    try:
        if measure.is_sweep(words):
            from lbtrain.app.measure_sweep import sweep

            sys.exit(sweep(words))
        line = measure.read(words)
    except ConfigError as error:
        sys.exit(measure.told(error))
    given = sys.argv

    @hydra.main(version_base="1.3", config_path="pkg://lbtrain.conf", config_name="train")
    def job(cfg: DictConfig) -> None:
        sys.argv = given  # Lightning starts the other ranks with it
        import_own_modules(cfg)
        from lbtrain.app.measure_run import measure as measure_one

        with _ending(cfg):
            measure_one(cfg, line)

    sys.argv = [given[0], *line.argv]
    job()


@contextmanager
def _ending(cfg: DictConfig) -> Iterator[None]:
    """End a job that fails with a message in place of Hydra's.

    Raises:
        SystemExit: If it fails; it holds the message.
        KeyboardInterrupt: If Ctrl-C has ended it.
    """
    try:
        yield
    except Exception as error:
        if HydraConfig.get().mode != RunMode.RUN:
            raise  # for another launcher, which runs jobs in this process and goes on after a failure
        # Described here, since Hydra would print the overrides, too, secrets and all, and a job's output is kept.
        raise SystemExit(_described(error, cfg)) from None
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning has turned one into the other
            raise KeyboardInterrupt from None
        raise


def main() -> None:
    """Run the command line; a sweep ends with its comparison, also when jobs failed or Ctrl-C has ended them.

    It exits with code 1 when something failed, and 130 after Ctrl-C. A first word of `commands.COMMANDS`, such as
    `measure` or `report`, trains nothing and has its own exit codes: 2 if it cannot read the command line.
    """
    interrupted = False
    with may_stop_reading(), _hints():
        try:
            _prepare()
            if sys.argv[1:2] and sys.argv[1] in COMMANDS:
                sys.exit(command(sys.argv[1])(sys.argv[2:]))
            if {"-h", "--help"} & set(sys.argv[1:]):
                print(usage())
            run()
        except KeyboardInterrupt as stop:
            interrupts.ignore()  # people press it more than once
            interrupted = True
            print(stop if isinstance(stop, interrupts.SweepInterrupted) else "interrupted", file=sys.stderr)
            sys.exit(_INTERRUPTED)
        finally:
            claim.remove_unused()
            launcher.show_last_sweep(interrupted)


def _prepare() -> None:
    # Hydra finds plugins of a wheel by itself, but not those of an editable install.
    Plugins.instance().register(LocalLauncher)
    after_sweep.watch(Plugins.instance())
    # The console script looks beside itself for modules, not where the user is.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    refuse_unknown_word(sys.argv[1:2])
    shared_place.agree()


def _described(error: Exception, cfg: DictConfig) -> str:
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    compact = isinstance(error, CompactHydraException) and not full
    text = str(error) if compact else "".join(traceback.format_exception(error)).rstrip()
    return redacted(text, cfg)


@contextmanager
def _hints() -> Iterator[None]:
    """Add the nearest valid name to what Hydra says of an unknown one.

    Raises:
        SystemExit: Hydra's own, which it raises while it handles the error.
    """
    try:
        yield
    except SystemExit as stop:
        hint = None if stop.__suppress_context__ else did_you_mean(stop.__context__)
        if hint:
            print(hint, file=sys.stderr)
        raise


def did_you_mean(error: BaseException | None) -> str | None:
    """Return the nearest valid name for a key or a member of a config group that Hydra does not know.

    Args:
        error: What ended Hydra, or None.

    Returns:
        One sentence; None if the error is of another kind.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # `raise a from b` can close a circle
        seen.add(id(error))
        if isinstance(error, MissingConfigException) and error.missing_cfg_file:
            group, _, given = error.missing_cfg_file.rpartition("/")
            known = list(error.options or _members(group))
            return _sentence(given, known) if known else None
        if isinstance(error, OmegaConfBaseException) and error.parent_node is not None and error.key is not None:
            given, known = str(error.key), [str(key) for key in error.parent_node]
            group = error.full_key.rpartition(".")[0] if error.full_key else ""
            if not known:
                return None
            absent = set(_members(group)) - set(known) if group in ("callbacks", "logger") else set()
            if given in absent:
                return f"{given!r} is not part of this run; add it: {group}=[...,{given}]"
            return _sentence(given, [*known, *absent])
        error = error.__cause__ or error.__context__
    return None


def _sentence(given: str, known: list[str]) -> str:
    near = nearest(given, known)
    return f"Did you mean {near!r}?" if near else f"There is no {given!r}; known are: {', '.join(sorted(known))}"


def _members(group: str) -> list[str]:
    # Of lbtrain's configs and of the user's --config-dir.
    given, _ = get_args_parser().parse_known_args(sys.argv[1:])
    folder = Path(given.config_dir or os.devnull) / group
    own = [file.stem for file in folder.glob("*.yaml")] if group else []
    GlobalHydra.instance().clear()  # Hydra has ended with the error that is being explained
    with hydra.initialize_config_module("lbtrain.conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        return sorted({*loader.get_group_options(group), *own}) if group else []


if __name__ == "__main__":
    main()
