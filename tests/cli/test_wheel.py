"""The installed package: its configs and its launcher travel with it."""

import importlib.metadata
import shutil
import subprocess
import sys

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


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Build the wheel from a copy of the sources, since a build leaves files beside them, and unpack it."""
    directory = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(".*", "*.egg-info", "build", "outputs", "multirun", "tests", "__pycache__")
    shutil.copytree(ROOT, directory / "source", ignore=ignored)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    # Without the build backend at hand pip fetches it.
    here = ["--no-build-isolation"] if setuptools_version() >= 77 else []
    build = ["wheel", "--no-deps", *here, "--wheel-dir", str(directory), str(directory / "source")]
    subprocess.run([*pip, *build], check=True, timeout=120)
    (wheel,) = directory.glob("lbtrain-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(directory / "site"), str(wheel)], check=True, timeout=60
    )
    return directory / "site"


def test_wheel_holds_configs_launcher_and_templates(installed):
    files = {path.relative_to(installed).as_posix() for path in installed.rglob("*") if path.is_file()}
    assert {"lbtrain/conf/train.yaml", "lbtrain/conf/callbacks/sam.yaml", "hydra_plugins/lbtrain_launcher.py"} <= files
    own = {path.relative_to(ROOT / "conf").as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    shipped = {name for name in files if name.startswith("lbtrain/conf/") and name.endswith(".yaml")}
    assert {f"lbtrain/conf/{name}" for name in own} == shipped
    assert any(name.startswith("lbtrain/study/") and name.endswith(".j2") for name in files)
    # A package of its own here would hide the plugins of others.
    assert "hydra_plugins/__init__.py" not in files


@pytest.mark.slow
def test_console_script_of_the_wheel_runs_a_sweep(installed, tmp_path):
    # The interpreter's own editable install must not answer in place of the wheel.
    (tmp_path / "start.py").write_text(
        "import sys, lbtrain\nfrom lbtrain.app.cli import main\n\nif __name__ == '__main__':\n"
        "    print(lbtrain.__file__)\n    main()\n"
    )
    done = run(
        ["-m", *SMALL, "seed=0,1", "hydra.sweep.dir=sweep"],
        tmp_path,
        program=(sys.executable, "start.py"),
        PYTHONPATH=str(installed),
    )
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == str(installed / "lbtrain" / "__init__.py")
    assert [read_record(tmp_path / "sweep" / str(number)).status for number in range(2)] == ["finished"] * 2
    assert (tmp_path / "sweep" / "report.html").is_file()


def test_configs_compose_in_an_application_of_others(installed, tmp_path):
    (tmp_path / "app.py").write_text(FOREIGN)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text(FOREIGN_CONFIG)
    program = (sys.executable, "app.py")
    done = run(["callbacks.sam.rho=0.1"], tmp_path, program=program, PYTHONPATH=str(installed))
    assert done.code == 0, done.err
    assert "_target_: lbtrain.callbacks.sam.SAM" in done.out
    assert "rho: 0.1" in done.out
    # The launcher is found although nothing of lbtrain was imported.
    launcher = run(["--cfg", "hydra"], tmp_path, program=program, PYTHONPATH=str(installed)).out
    assert "hydra_plugins.lbtrain_launcher.LocalLauncher" in launcher
