"""The words that stand first on the command line in place of a training; each is a function of the words after it."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from lbtrain.app.signatures import nearest

# Word -> (the function, which takes the words after it and returns an exit code; what `--help` says of it).
COMMANDS = {
    "measure": ("lbtrain.app.cli:run_measure", "measure a checkpoint with the callbacks, without training"),
    "scale": ("lbtrain.app.scale:main", "print the hyperparameters for another batch size"),
    "report": ("lbtrain.app.commands:report", "compare the runs of sweeps: tables, figures, findings"),
    "between": ("lbtrain.app.between:main", "measure the loss on the line between two solutions"),
    "sync": ("lbtrain.app.sync:main", "upload runs that wandb has kept offline"),
}


def command(word: str) -> Callable[[Sequence[str]], int | None]:
    """Import what a word stands for; the others stay unread, since some of them load much.

    Args:
        word: A key of `COMMANDS`.

    Returns:
        A function of the words after it, which returns an exit code (None: 0).
    """
    module, _, name = COMMANDS[word][0].partition(":")
    found: Callable[[Sequence[str]], int | None] = getattr(import_module(module), name)
    return found


def report(words: Sequence[str]) -> int:
    """Rebuild the report of sweeps, as `python -m lbtrain.study` does.

    Args:
        words: The command line after `report`.

    Returns:
        Exit code.
    """
    from lbtrain.study.__main__ import main

    return main(words, prog="lbtrain report")


def usage() -> str:
    """Say what stands beside a training.

    Returns:
        A few lines, printed above Hydra's help.
    """
    lines = [f"  lbtrain {word:<9} {text}" for word, (_, text) in COMMANDS.items()]
    start = "usage: lbtrain [-m] [key=value ...]   train, or sweep with -m; or one of the commands (each has --help)"
    return "\n".join([start, *lines])


def refuse_unknown_word(words: Sequence[str]) -> None:
    """End with code 2 where the first word is neither a command nor an override or a flag of Hydra.

    Args:
        words: The command line.
    """
    if not words or words[0] in COMMANDS or "=" in words[0] or words[0].startswith(("-", "~", "+")):
        return
    near = nearest(words[0], COMMANDS)
    if near:
        print(f"lbtrain: there is no command {words[0]!r}. Did you mean {near!r}?", file=sys.stderr)
    else:
        print(
            f"lbtrain: {words[0]!r} is no command and no key=value; commands are: {', '.join(COMMANDS)}; "
            "lbtrain --help lists the settings",
            file=sys.stderr,
        )
    sys.exit(2)
