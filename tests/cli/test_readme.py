"""The README's commands are run as written, in small."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# What other tests and CI run whole.
ELSEWHERE = {"make study", "make test"}
SMALL = ["trainer.max_epochs=1", "data.batch_size=512"]
FEWER = {
    "experiment=tune": ["hydra.sweeper.n_trials=2"],
    "experiment=surlemont2022": ["scaling=fixed", "optimizer=momentum"],
}


def commands():
    """Return the commands of the README's bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and line not in ELSEWHERE]


def measured_less(command):
    """Return what makes the measurements of a command short."""
    if "experiment=tune" in command:
        return []
    (named,) = re.findall(r"callbacks=\[([^]]*)\]", command) or ["hessian,sharpness"]
    return [f"callbacks.{name}.num_samples=128" for name in ("hessian", "sharpness") if name in named]


def run(words, folder):
    """Run a command of the README with its output in a folder of the test's."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_readme_is_short_and_names_all_callbacks():
    import lbtrain

    assert README.count("\n") < 200
    assert all(f"{name}(" in README for name in lbtrain.__all__)
    assert len(commands()) >= 8


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A sweep that the commands of the README look at."""
    folder = tmp_path_factory.mktemp("sweep")
    axes = ["data.batch_size=256,512", "callbacks=[checkpoint]", "logger=[csv,wandb]", "trainer.max_epochs=1"]
    run(["python", "train.py", "-m", *axes, f"hydra.sweep.dir={folder}"], folder)
    return folder


def of_a_sweep(words, sweep):
    """Run a command that looks at a sweep."""
    said = run([word.replace("multirun/DATE/TIME", str(sweep)) for word in words], sweep)
    if words[1] == "report":
        assert str(sweep / "report.html") in said
    elif words[1] == "between":
        assert len(list((sweep / "between").glob("*.json"))) == 1
    else:
        assert "2 runs" in said


def of_a_checkpoint(words, folder):
    """Run a command that measures a checkpoint."""
    run(["python", "train.py", *SMALL, "callbacks=[checkpoint]", f"hydra.run.dir={folder / 'run'}"], folder)
    words = [word.replace("RUN", str(folder / "run")) for word in words]
    assert "lambda_max" in run([*words, f"hydra.run.dir={folder / 'measured'}"], folder)
    assert "hessian/lambda_max" in (folder / "measured" / "measurement.json").read_text()


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_readme(command, tmp_path, request):
    words = shlex.split(command)
    if "multirun/DATE/TIME" in words:
        of_a_sweep(words, request.getfixturevalue("sweep"))
        return
    if words[:2] == ["lbtrain", "measure"]:
        of_a_checkpoint(words, tmp_path)
        return
    if "--help" in words or words[:2] == ["lbtrain", "scale"]:
        assert ("callbacks" if "--help" in words else "0.1") in run(words, tmp_path)
        return
    small = [word for word in SMALL if word.split("=")[0] + "=" not in command]
    kept = [word for word in words if not word.startswith("hydra.sweep.dir=")]
    kind = "sweep" if "-m" in words else "run"
    fewer = next((less for name, less in FEWER.items() if name in words), [])
    run([*kept, *small, *fewer, *measured_less(command), f"hydra.{kind}.dir={tmp_path}"], tmp_path)
    assert (tmp_path / ("report.html" if kind == "sweep" else "summary.json")).exists()


@pytest.mark.slow
@pytest.mark.distributed
def test_the_example(tmp_path):
    said = run(["python", "-W", "ignore", "examples/add_callbacks.py"], tmp_path)
    assert re.search(r"hessian/lambda_max +\d", said)
    assert re.search(r"lr/scaled +0\.08", said)


def test_the_lines_for_an_existing_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where callbacks leave their files
    from tests.modules import Plain, digits_like, fit

    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {"Trainer": lambda callbacks: fit(Plain(), digits_like(), callbacks)}
    exec(block, names)
    assert names["trainer"].callback_metrics["lr/factor"].item() == 8 / 256
