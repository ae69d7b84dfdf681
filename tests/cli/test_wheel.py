"""The installed package, in an environment of its own: its configs, its launcher and its command travel with it."""

import importlib.metadata
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from lbtrain.records import read_record
from tests.cli.commands import ROOT, SMALL, run

FOREIGN = """
import hydra
from omegaconf import OmegaConf


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(cfg):
    print(OmegaConf.to_yaml(cfg))


main()
"""
FOREIGN_CONFIG = """
defaults:
  - callbacks: [lr_scaling, sam]
  - _self_
  - override hydra/launcher: local
hydra:
  searchpath: [pkg://lbtrain.conf]
seed: 3
"""


def setuptools_version():
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


@dataclass(frozen=True)
class Installed:
    python: Path
    lbtrain: Path
    """The command."""
    site: Path
    """Where the wheel was unpacked."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel from a copy of the sources, since a build leaves files beside them, and install it."""
    directory = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "outputs", "multirun", "tests", "__pycache__")
    shutil.copytree(ROOT, directory / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without the build backend at hand pip fetches it.
    here = ["--no-build-isolation"] if setuptools_version() >= 77 else []
    build = ["wheel", "--no-deps", *here, "--wheel-dir", str(directory), str(directory / "source")]
    subprocess.run([*pip, *build], check=True, timeout=120)
    (wheel,) = directory.glob("lbtrain-*.whl")
    clean = clean_environment(directory / "clean")
    install = ["--python", str(clean.python), "install", "--no-deps", "--no-warn-script-location", str(wheel)]
    subprocess.run([*pip, *install], check=True, timeout=60)
    return clean


def clean_environment(folder):
    """Make an environment with the packages that the tests have, except for lbtrain: what a user would install."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    (site,) = folder.glob("lib/python*/site-packages")
    # Python reads no .pth file of a folder that one names, so the editable install there stays without effect.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    clean = Installed(folder / "bin" / "python", folder / "bin" / "lbtrain", site)
    absent = subprocess.run([clean.python, "-I", "-c", "import lbtrain"], cwd=folder, capture_output=True, timeout=60)
    assert b"No module named 'lbtrain'" in absent.stderr
    return clean


def test_wheel_holds_configs_launcher_and_templates(installed):
    site = installed.site
    files = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    assert {"lbtrain/conf/train.yaml", "lbtrain/conf/callbacks/sam.yaml", "hydra_plugins/lbtrain_launcher.py"} <= files
    own = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    shipped = {name for name in files if name.startswith("lbtrain/conf/") and name.endswith(".yaml")}
    assert {f"lbtrain/conf/{name}" for name in own} == shipped
    assert any(name.startswith("lbtrain/study/") and name.endswith(".j2") for name in files)
    # A package of its own here would hide the plugins of others.
    assert "hydra_plugins/__init__.py" not in files


@pytest.mark.slow
def test_console_script_of_the_wheel_runs_a_sweep(installed, tmp_path):
    where = run(["-c", "import lbtrain; print(lbtrain.__file__)"], tmp_path, program=(installed.python,))
    assert where.out.strip() == str(installed.site / "lbtrain" / "__init__.py")
    done = run(["-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep"], tmp_path, program=(installed.lbtrain,))
    assert done.code == 0, done.err
    assert [read_record(tmp_path / "sweep" / str(number)).status for number in range(2)] == ["finished"] * 2
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_configs_compose_in_an_application_of_others(installed, tmp_path):
    (tmp_path / "app.py").write_text(FOREIGN)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(FOREIGN_CONFIG)
    program = (installed.python, "app.py")
    done = run(["callbacks.sam.rho=0.1"], tmp_path, program=program)
    assert done.code == 0, done.err
    assert "_target_: lbtrain.callbacks.sam.SAM" in done.out
    assert "rho: 0.1" in done.out
    # The launcher is found although nothing of lbtrain was imported.
    launcher = run(["--cfg", "hydra"], tmp_path, program=program).out
    assert "hydra_plugins.lbtrain_launcher.LocalLauncher" in launcher
