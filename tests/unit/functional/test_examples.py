"""The examples in the docstrings run and are short; each measure of sharpness has one."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

import lbtrain.functional
from lbtrain.functional import sharpness

MODULES = sorted(info.name for info in pkgutil.iter_modules(lbtrain.functional.__path__))
LONGEST = 10  # lines of code that a reader takes in at once


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(f"lbtrain.functional.{name}")
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", sharpness.__all__)
def test_each_measure_of_sharpness_has_a_short_example(name):
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(sharpness, name)))
    assert examples
    assert sum(example.source.count("\n") for example in examples) <= LONGEST
