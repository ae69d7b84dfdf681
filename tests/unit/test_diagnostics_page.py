"""What the page of the diagnosis says is so: its checks, their functions and thresholds, and the problems it names."""

import importlib
import pkgutil
import re

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

import lbtrain.functional
from lbtrain.app.instantiate import instantiate
from lbtrain.app.remedy_keys import KNOBS
from lbtrain.callbacks._diagnosis_checks import CHECKS, limits_of, thresholds_of
from lbtrain.functional import diagnosis
from tests.unit.test_docs import CONF, EVERY_PAGE, _blocks, _table

PAGE = EVERY_PAGE["diagnostics"]
FUNCTIONS = {
    name
    for module in pkgutil.iter_modules(lbtrain.functional.__path__)
    if not module.name.startswith("_")
    for name in vars(importlib.import_module(f"lbtrain.functional.{module.name}"))
}


def tables(first):
    """Return the rows of all tables whose head starts with this word, by the second word of the head."""
    heads = re.findall(rf"^\| {first} \| ([a-z]+) \|", PAGE, re.MULTILINE)
    parts = re.split(rf"(?=^\| {first} \| [a-z]+ \|)", PAGE, flags=re.MULTILINE)[1:]
    return {head: _table(part, first) for head, part in zip(heads, parts, strict=True)}


def test_every_check_is_listed_in_order_with_functions_that_exist():
    rows = tables("check")["functions"]
    assert [cells[0].strip("`") for cells in rows] == list(CHECKS)
    for check, functions, _ in rows:
        named = re.findall(r"`(\w+)`", functions)
        assert set(named) <= FUNCTIONS, check
        assert set(named) & {function.__name__ for function in CHECKS[check.strip("`")]}, check


def test_every_threshold_is_listed_with_its_default():
    rows = tables("check")["threshold"]
    listed = {(check.strip("`"), name.strip("`")): eval(value.strip("`")) for check, name, value, _ in rows}
    assert len(listed) == len(rows)
    assert listed == {(check, name): value for check in CHECKS for name, value in thresholds_of(check).items()}


def test_every_problem_is_named_in_its_order():
    (listed,) = re.findall(r"names in `diagnosis.json`: (.*?)\.\n", PAGE, re.DOTALL)
    assert re.sub(r"\s+", " ", re.sub(r" \(.*?\)", "", listed, flags=re.DOTALL)).split(", ") == list(diagnosis.PROBLEMS)


def test_every_knob_of_a_remedy_is_looked_up_in_the_config():
    listed = re.findall(r"`(\w+)`", diagnosis.Remedy.__doc__.partition("Knobs:")[2])
    assert set(listed) == set(KNOBS)


def test_thresholds_and_checks_of_the_command_lines_arrive():
    lines = [line for block in _blocks(PAGE, "bash") for line in block.splitlines()]
    given = [word.strip("'") for line in lines for word in line.split() if "diagnostics." in word]
    assert len(given) == 2
    OverridesParser.create().parse_overrides(given)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = instantiate(compose("train", ["callbacks=[diagnostics]", *given]).callbacks.diagnostics)
    assert limits_of(made.thresholds)["units"] == {"dead_share": 0.3}
    assert made.checks == {"gradients": False, "labels": False}
