"""A package that only an extra installs is named together with the extra."""

import sys
from importlib.metadata import requires

import pytest
from hydra import compose, initialize_config_module

from lbtrain.app.instantiate import ConfigError, validate
from lbtrain.app.signatures import EXTRAS, locate


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
