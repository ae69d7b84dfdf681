"""A run that examines itself, from the command line: what stands on the screen and in its directory."""

import json
import re

import pytest

from lbtrain.records import read_record
from tests.cli.commands import run

CALLBACKS = "callbacks=[lr_scaling,loss_reduction,diagnostics,checkpoint]"
QUIET = "trainer.enable_progress_bar=false"


def read(directory):
    return json.loads((directory / "diagnosis.json").read_text())


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """A run whose rate, 64 times 0.05, is far beyond the edge of stability."""
    directory = tmp_path_factory.mktemp("sick")
    words = [CALLBACKS, "optimizer.lr=0.05", "data.batch_size=1024", "trainer.max_epochs=6", QUIET]
    done = run([*words, "hydra.run.dir=run"], directory, COLUMNS="160")
    assert done.code == 0, done.err
    return done, directory / "run"


def test_a_rate_beyond_the_edge_is_named_with_a_rate_of_this_run_that_is_lower(sick):
    done, directory = sick
    found = read(directory)
    (rise,) = [finding for finding in found["findings"] if finding["problem"] == "instability"]
    assert (found["status"], found["error"], found["steps"]) == ("finished", None, 12)
    (override,) = rise["remedies"][0]["overrides"]
    key, _, rate = override.partition("=")
    assert key == "optimizer.lr"
    # Of the config, before the scaling multiplies it by 64.
    assert 0 < float(rate) < 0.05
    assert float(rate) == pytest.approx(rise["remedies"][0]["changes"]["lr"] / 64, rel=0.06)
    assert override in done.out
    assert done.out.count("diagnosis: ") == 1


def test_the_record_has_the_first_problem_and_their_number(sick):
    _, directory = sick
    metrics, findings = read_record(directory).metrics, read(directory)["findings"]
    assert metrics["diagnosis/first"] == findings[0]["problem"]
    assert metrics["diagnosis/problems"] == len(findings) >= 1


def test_a_crash_leaves_what_was_seen_until_then_and_no_secret(planted):
    secret = "sk-4711-very-secret"
    small = [word for word in planted.small if not word.startswith("callbacks=")]
    words = [*small, "callbacks=[lr_scaling,diagnostics,fault]", "callbacks.fault.kind=raise", QUIET]
    done = run([*words, "hydra.run.dir=run"], planted.directory, TEST_API_TOKEN=secret)
    assert done.code == 1
    assert "RuntimeError: planted fault" in done.err
    found = read(planted.directory / "run")
    assert found["status"] == "failed"
    assert found["error"].startswith("RuntimeError")
    assert found["steps"] == 6
    assert len(re.findall(r"^diagnosis: .*", done.out, re.MULTILINE)) == 1
    assert secret not in done.out
    assert secret not in (planted.directory / "run" / "diagnosis.json").read_text()


@pytest.mark.slow
def test_a_healthy_run_says_so_in_one_line(tmp_path):
    done = run([CALLBACKS, QUIET, "hydra.run.dir=run"], tmp_path)
    assert done.code == 0, done.err
    (line,) = [line for line in done.out.splitlines() if "diagnos" in line]
    assert re.fullmatch(r"diagnosis: no problem found in \d+ checks \(\d+ samples, [\d.e+-]+ % of the time\).*", line)
    assert read(tmp_path / "run")["findings"] == []
    assert read_record(tmp_path / "run").metrics["diagnosis/first"] == "none"
