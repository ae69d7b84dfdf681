"""A package that only an extra installs is named together with the extra."""

import ast
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from lbtrain.app.instantiate import ConfigError, validate
from lbtrain.app.signatures import EXTRAS, locate

OWN = {"lbtrain", "hydra_plugins"}


@pytest.mark.parametrize("optimizer", ["lars", "lamb"])
def test_missing_optimizer_package_says_what_to_install(optimizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with initialize_config_module("lbtrain.conf", version_base="1.3"):
        cfg = compose("train", [f"optimizer={optimizer}"])
    with pytest.raises(ConfigError, match=r"optimizer._target_: no module .* pip install 'lbtrain\[optim\]'"):
        validate(cfg)


def test_other_missing_packages_are_named_alone():
    with pytest.raises(LookupError, match=r"^no module 'no_such' is installed, needed for 'no_such.Thing'$"):
        locate("no_such.Thing")


def test_extras_are_those_of_the_project():
    for package, extra in EXTRAS.items():
        name = package.replace("_", "-")
        assert any(line.startswith(name) and line.endswith(f'extra == "{extra}"') for line in requires("lbtrain"))


def test_what_is_imported_is_asked_for_and_pinned():
    root = Path(__file__).parents[3]
    asked = re.search(r"^dependencies = \[(.*?)^\]", (root / "pyproject.toml").read_text(), re.M | re.S)[1]
    pinned = (root / "constraints.txt").read_text()
    found = {name for path in (root / "lbtrain").rglob("*.py") for name in imported(path)} - OWN
    assert {"PIL", "torch"} <= found
    for name in sorted(found):
        package = packages_distributions()[name][0].lower()
        assert re.search(rf'^  "{package}[">]', asked, re.M), package
        assert re.search(rf"^{package}==", pinned, re.M), package


def imported(path):
    """Return the packages of others that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
        for name in filter(None, names):
            if (top := name.partition(".")[0]) not in sys.stdlib_module_names:
                yield top
