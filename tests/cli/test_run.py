"""One run from the command line."""

import pytest

from lbtrain.records import read_record
from tests.cli.commands import SMALL, TRAIN, run


def test_console_script_is_the_same_command(tmp_path):
    # The script beside the interpreter of the tests.
    name = TRAIN[0].rpartition("/")[0] + "/lbtrain"
    script = run(["--cfg", "job"], tmp_path, program=(name,))
    assert (script.code, script.out) == (0, run(["--cfg", "job"], tmp_path).out)


@pytest.mark.distributed
def test_two_processes_write_one_record_and_count_each_sample_once(tmp_path):
    name = "with space, and = sign"
    done = run(["trainer=ddp_cpu", f"hydra.run.dir='{name}'", *SMALL, "data.batch_size=64"], tmp_path)
    assert done.code == 0, done.err
    both = done.out + done.err
    assert both.count("global batch 128 = 64 x 2 x 1, lr 0.01 -> 0.08 (linear, base 16)") == 1
    assert both.count("results:") == 1
    record = read_record(tmp_path / name)
    assert record.metrics["batch/data_parallel"] == 2
    # 1797 images: 360 for testing, 1293 of the others for training; repeats would make other denominators.
    for key, samples in (("test/acc", 360), ("train/acc", 1293)):
        right = record.metrics[key] * samples
        assert right == pytest.approx(round(right), abs=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ctrl_c_leaves_a_record_that_says_so(planted):
    done = run([*planted.small, "callbacks.fault.kind=interrupt", "hydra.run.dir=run"], planted.directory)
    assert done.code == 130
    assert "interrupted" in done.err
    assert "Traceback" not in done.err
    record = read_record(planted.directory / "run")
    assert (record.status, record.error) == ("failed", "KeyboardInterrupt")


def test_failing_run_is_recorded_with_its_reason_and_without_secrets(planted):
    secret = "sk-4711-very-secret"
    overrides = ["+token=${oc.env:TEST_API_TOKEN}", f"+api_key={secret}-2", "tags=[${token},${api_key}]"]
    arguments = [*planted.small, "callbacks.fault.kind=raise", "hydra.run.dir=run", *overrides]
    done = run(arguments, planted.directory, cold=True, TEST_API_TOKEN=secret)
    assert done.code == 1
    assert "RuntimeError: planted fault, token ***" in done.err
    assert "Traceback" in done.err
    record = read_record(planted.directory / "run")
    assert (record.status, record.error) == ("failed", "RuntimeError: planted fault, token ***")
    assert record.metrics["lr/scaled"] == pytest.approx(0.16)
    assert record.config["data.batch_size"] == 256
    leaked = [
        path.relative_to(planted.directory / "run")
        for path in (planted.directory / "run").rglob("*")
        if path.is_file() and ".hydra" not in path.parts and secret in path.read_text(errors="replace")
    ]
    assert not leaked
