"""wandb, read back from its own offline files: what runs leave there, resumed, interrupted, killed, in one process."""

import json
import os
import re
import signal
import sys

import pytest

from lbtrain.app import sync
from tests.cli.commands import Command, run
from tests.cli.wandb_file import read

pytestmark = pytest.mark.slow

WANDB = ("logger=[csv,wandb]", "model=linear", "data.batch_size=256")
HESSIAN = ("callbacks.hessian.top_k=3", "callbacks.hessian.by_layer=true", "callbacks.hessian.figures=[density,layers]")
RUN = (*WANDB, "callbacks=[lr_scaling,hessian,checkpoint]", *HESSIAN, "hydra.run.dir=run")


def told(process):
    return process.out + process.err


@pytest.fixture(scope="module")
def sessions(tmp_path_factory, wandb_service):
    """A run with a Hessian, and its second session, which goes on from the checkpoint of the first one."""
    directory = tmp_path_factory.mktemp("resumed")
    first = run([*RUN, "trainer.max_epochs=1"], directory, **wandb_service.variables)
    again = [*RUN, "trainer.max_epochs=2", "ckpt_path=run/checkpoints/last.ckpt"]
    second = run(again, directory, **wandb_service.variables)
    assert (first.code, second.code) == (0, 0), told(first) + told(second)
    files = sorted((directory / "run" / "wandb").glob("offline-run-*/*.wandb"))
    return directory / "run", [(file.parent, read(file)) for file in files]


def steps(found):
    return [row["trainer/global_step"] for row in found["history"]]


def test_a_resumed_run_goes_on_under_its_identity_and_on_its_axis(sessions):
    directory, found = sessions
    (_, first), (_, second) = found
    note = json.loads((directory / "wandb_run.json").read_text())
    assert {first["run"].run_id, second["run"].run_id} == {(directory / "wandb_id.txt").read_text()} == {note["id"]}
    assert (note["group"], note["project"]) == (None, "lbtrain")
    batches = 6  # of 256 among the 1437 digits that are trained on, less those of the validation
    trained = [[r["trainer/global_step"] for r in s["history"] if "val/loss" in r] for s in (first, second)]
    assert len(trained[0]) == len(trained[1]) == 1
    assert 0 < trained[0][0] <= batches < trained[1][0] + 1
    assert max(steps(first)) < max(steps(second))
    assert min(steps(second)) >= trained[0][0]


def test_steps_are_the_x_axis_and_best_values_are_declared_before_they_come(sessions):
    for _, found in sessions[1]:
        metrics = found["metrics"]
        assert metrics["*"].step_metric == "trainer/global_step"
        assert metrics["*"].options.step_sync
        assert (metrics["val/acc"].summary.max, metrics["val/loss"].summary.min) == (True, True)
        assert all(metrics[key].step_metric == "trainer/global_step" for key in ("val/acc", "val/loss"))
        # Of two patterns that match a key wandb takes one at random: there is one, and it has no summary.
        assert [name for name in metrics if "*" in name] == ["*"]
        assert not metrics["*"].summary.max
        best, rows = found["summary"], [row["val/loss"] for row in found["history"] if "val/loss" in row]
        assert best["val/loss"] == {"min": min(rows), "last": rows[-1]}


def test_every_number_of_the_summary_is_in_wandb_s_too(sessions):
    directory, found = sessions
    numbers = json.loads((directory / "summary.json").read_text())["metrics"]
    best = found[-1][1]["summary"]
    for key, value in numbers.items():
        shown = best[key]["last"] if isinstance(best[key], dict) else best[key]
        assert shown == (pytest.approx(value) if isinstance(value, float) else value), key
    assert {key.split("/")[0] for key in numbers} >= {"train", "test", "val", "gap", "hessian", "lr", "batch", "time"}


def test_figures_are_images_with_the_run(sessions):
    for folder, found in sessions[1]:
        for name in ("hessian_density", "hessian_layers"):
            (picture,) = folder.glob(f"files/media/images/figures/{name}_*.png")
            assert picture.read_bytes().startswith(b"\x89PNG")
            (row,) = [row for row in found["history"] if f"figures/{name}._type" in row]
            assert row[f"figures/{name}._type"] == "images/separated"
            assert row[f"figures/{name}.filenames"] == [str(picture.relative_to(folder / "files"))]


def test_the_spectrum_is_a_table_and_a_file(sessions):
    directory, found = sessions
    folder, last = found[-1]
    parts = json.loads((directory / "spectrum.json").read_text())["hessian"]
    tables = {f.name.rpartition("_")[0].rpartition("_")[0]: f for f in folder.glob("files/media/table/spectrum/*")}
    assert set(tables) == {"hessian", "hessian_density", "hessian_layers"}
    table = json.loads(tables["hessian"].read_text())
    pairs = zip(parts["eigenvalues"], parts["residuals"], strict=True)
    assert (table["columns"], table["data"]) == (
        ["index", "eigenvalue", "residual"],
        [[i, *pair] for i, pair in enumerate(pairs, start=1)],
    )
    assert parts["eigenvalues"][0] == last["summary"]["hessian/lambda_max"]
    assert any(row.get("spectrum/hessian._type") == "table-file" for row in last["history"])


def test_sync_lists_both_sessions_as_one_run_and_wandb_s_command_takes_its_words(sessions, tmp_path, capsys):
    directory, found = sessions
    assert sync.main([str(directory), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 run in 2 sessions to upload" in out
    assert out.count(f"(id {found[0][1]['run'].run_id}, ") == 2
    assert "finished)" in out
    folders = [str(folder) for folder, _ in found]
    words = ["sync", "--dry-run", "--project", "p", "--entity", "e", *folders]
    done = run(words, tmp_path, program=(sys.executable, "-m", "wandb"))
    assert done.code == 0, told(done)
    assert "Would sync 2 run(s)" in told(done)


def test_a_server_that_is_not_there_makes_sync_fail_and_keeps_the_runs(sessions, wandb_service):
    directory, _ = sessions
    closed = {**wandb_service.variables, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "k" * 40}
    done = run(["sync", str(directory), "--yes"], directory, **closed)
    assert done.code == 1, told(done)
    assert "http://127.0.0.1:9 cannot be reached" in done.err
    assert "k" * 40 not in told(done)
    assert not list(directory.rglob("*.synced"))


def test_ctrl_c_and_a_failure_end_the_run_of_wandb_as_failed(planted, wandb_service):
    small = (*planted.small, *WANDB)
    interrupted = run([*small, "callbacks.fault.kind=interrupt", "hydra.run.dir=a"], planted.directory)
    assert interrupted.code == 130, told(interrupted)
    failed = run([*small, "callbacks.fault.kind=raise", "hydra.run.dir=b"], planted.directory)
    assert failed.code == 1, told(failed)
    for name in ("a", "b"):
        (file,) = (planted.directory / name).glob("wandb/offline-run-*/*.wandb")
        assert read(file)["exit"] == 1


def test_what_wandb_had_written_of_a_killed_job_can_be_read_and_uploaded(planted, wandb_service, capsys):
    words = [*planted.small, *WANDB, "callbacks.fault.kind=sleep", "hydra.run.dir=a"]
    with Command(words, planted.directory, **wandb_service.variables) as command:
        # wandb writes what it has every 15 s; its file begins with a header of 7 bytes.
        started = lambda: [f for f in planted.directory.glob("a/wandb/*/*.wandb") if f.stat().st_size > 7]
        command.wait_until(started)
        os.kill(command.process.pid, signal.SIGKILL)
        assert command.done().code == -9
    (file,) = (f for f in started() if f.parent.name.startswith("offline-run-"))
    assert any("lr/scaled" in row for row in read(file)["history"])
    os.utime(file, (0, 0))  # long ago, so that nobody seems to write to it
    assert sync.main([str(planted.directory), "--dry-run"]) == 0
    run_id = (planted.directory / "a" / "wandb_id.txt").read_text()
    assert re.search(rf"max_epochs=1 .*\(id {run_id}, .*, no end: killed\)", capsys.readouterr().out)


def test_jobs_of_one_process_share_nothing_in_wandb(tmp_path, wandb_service):
    words = ["-m", "hydra/launcher=basic", *WANDB, "callbacks=[lr_scaling]", "trainer.max_epochs=1", "seed=3,4"]
    done = run([*words, "hydra.sweep.dir=sweep"], tmp_path, **wandb_service.variables)
    assert done.code == 0, told(done)
    files = [next((tmp_path / "sweep" / number).glob("wandb/offline-run-*/*.wandb")) for number in ("0", "1")]
    first, second = map(read, files)
    assert first["run"].run_id != second["run"].run_id
    assert [found["config"]["seed"] for found in (first, second)] == [3, 4]
    assert [found["exit"] for found in (first, second)] == [0, 0]
    assert {found["run"].run_group for found in (first, second)} == {f"{tmp_path.name}/sweep"}
    assert ["seed=3" in first["run"].display_name, "seed=4" in second["run"].display_name] == [True, True]
    # One row of the validation each: neither logs into the other's run.
    assert [sum("val/loss" in row for row in found["history"]) for found in (first, second)] == [1, 1]
