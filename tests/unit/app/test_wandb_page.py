"""What the page on wandb says is so: arguments, command lines, names of files and keys."""

import inspect
import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from lbtrain.app import loggers, outcome, spectra, sync
from lbtrain.app.instantiate import validate
from lbtrain.app.loggers import wandb_logger
from lbtrain.app.wandb_metrics import STEP, best_of
from lbtrain.study.__main__ import _parser as report_parser

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "wandb.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


def test_the_table_of_arguments_is_the_config_and_the_signature():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", PAGE.partition("## Arguments")[2], re.MULTILINE)
    node = OmegaConf.load(ROOT / "conf" / "logger" / "wandb.yaml").wandb
    given = OmegaConf.to_container(node, resolve=False)
    del given["_target_"]
    assert {name: eval(default) for name, default in rows} == given
    assert [name for name, _ in rows] == list(given) == list(inspect.signature(wandb_logger).parameters)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python train.py")])
def test_a_training_composes_with_wandb_and_is_valid(line):
    words = [word for word in shlex.split(line)[2:] if word != "-m"]
    single = [re.sub(r"=([^\[\],]+),.*", r"=\1", word) for word in words]  # the first of the values that are swept
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", single)
    assert set(cfg.logger) == {"csv", "wandb"}
    validate(cfg)


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("lbtrain")])
def test_a_command_is_understood(line):
    _, word, *words = shlex.split(line)
    options = {"sync": sync._parser(), "report": report_parser()}[word].parse_args(words)
    assert str(words[0]) in map(str, vars(options).get("folders") or options.sweep_dir)


def test_every_line_of_code_is_of_a_kind_that_is_checked():
    assert len(LINES) >= 8
    assert all(line.startswith(("python train.py ", "lbtrain sync ", "lbtrain report ")) for line in LINES)


def test_the_names_of_files_and_keys_are_those_in_use():
    for name in (loggers.ID_NAME, loggers.RUN_NAME, spectra.SPECTRUM_NAME, STEP):
        assert f"`{name}`" in PAGE
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        block = outcome._headline(compose("train", ["logger=wandb"]), {}, None)
    sorted_by = re.search(r"to sort and group by: (.*?) \|", PAGE).group(1)
    named = re.findall(r"`(\w+)`", sorted_by)
    assert len(named) == len(set(named)) == 12
    assert set(named) <= set(block)


def test_the_words_of_losses_and_scores_are_those_in_use():
    losses, scores = re.search(r"a word such as (.*?), and a score if it has one such as (.*?)\.", PAGE).groups()
    assert {best_of(f"val/{word}") for word in re.findall(r"`(\w+)`", losses)} == {"min"}
    assert {best_of(f"val/{word}") for word in re.findall(r"`(\w+)`", scores)} == {"max"}
