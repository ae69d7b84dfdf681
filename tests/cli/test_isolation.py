"""Jobs of one sweep start from one warm process, and nothing of one reaches another."""

import json

import pytest

from lbtrain.records import read_record
from tests.cli.commands import Command
from tests.cli.probe import plant
from tests.cli.wandb_file import read

pytestmark = pytest.mark.slow  # seven jobs one after another, which all look at themselves

# In this order, one at a time: what each job does, and its seed.
JOBS = {
    "first": ("look", 0),
    "spoiler": ("spoil", 0),
    "loose": ("look", "null"),
    "exits": ("exit", 0),
    "crashes": ("crash", 0),
    "other": ("look", "null"),
    "last": ("look", 0),
}
LOOKED = ("first", "loose", "other", "last")


class Sweep:
    """A sweep that has ended: its directory, what its jobs saw, and the command's end."""

    def __init__(self, directory, jobs, *overrides, **environment):
        arguments = ["-m", *plant(directory, jobs), *overrides, "hydra.launcher.slots=1", "hydra.sweep.dir=sweep"]
        with Command(arguments, directory, **environment) as command:
            self.done = command.done(200)
            self.left = command.wait_alone()
        folders = [directory / "sweep" / str(number) for number in range(len(jobs))]
        self.folders = dict(zip(jobs, folders, strict=True))
        assert all((folder / "seen.json").is_file() for folder in folders), self.done
        self.seen = {name: json.loads((folder / "seen.json").read_text()) for name, folder in self.folders.items()}
        self.records = {name: read_record(folder) for name, folder in self.folders.items()}

    def without_place(self, name, part):
        """Return a part of what a job saw, with its own directory and name taken out."""
        text = json.dumps(self.seen[name][part])
        return json.loads(text.replace(str(self.folders[name]), "PLACE").replace(f"experiment={name}", "OWN"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    environment = {"OMP_NUM_THREADS": None, "PL_GLOBAL_SEED": "77", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return Sweep(tmp_path_factory.mktemp("isolation"), JOBS, "logger=[csv,wandb]", **environment)


def test_a_job_that_ends_by_force_is_the_only_one_lost(sweep):
    assert {name: record.status for name, record in sweep.records.items() if name in LOOKED} == dict.fromkeys(
        LOOKED, "finished"
    ), sweep.done
    assert sweep.records["spoiler"].error == "RuntimeError: spoiled"
    assert sweep.records["exits"].error.startswith("ended with exit code 7 before the run was complete")
    assert sweep.records["crashes"].error.startswith("ended by signal SIGSEGV before the run was complete")
    assert sweep.done.code == 1
    assert sweep.left == []
    # The one that imported torch for all of them is still the same.
    assert len({seen["server"] for seen in sweep.seen.values()}) == 1


def test_torch_and_its_company_are_as_new_in_each_job(sweep):
    first = sweep.seen["first"]["settings"]
    assert {name: sweep.seen[name]["settings"] for name in JOBS} == dict.fromkeys(JOBS, first)
    assert first["dtype"] == "torch.float32"
    assert first["cuda"][0] is False
    assert not any(seen["gpu"]["server"] for seen in sweep.seen.values())


def test_the_process_is_as_new_in_each_job(sweep):
    first = sweep.without_place("first", "process")
    assert {name: sweep.without_place(name, "process") for name in JOBS} == dict.fromkeys(JOBS, first)
    assert first["cwd"] == str(sweep.folders["first"].parents[1])
    assert first["spoiled"] is False


def test_each_job_has_its_own_command_line_and_no_file_of_another_job(sweep):
    first = sweep.without_place("first", "argv")
    for number, name in enumerate(JOBS):
        argv = [
            word.replace(f"hydra.job.num={number}", "hydra.job.num=0") for word in sweep.without_place(name, "argv")
        ]
        assert argv == first
        others = {str(folder) for other, folder in sweep.folders.items() if other != name}
        assert not [file for file in sweep.seen[name]["files"] if any(file.startswith(f"{o}/") for o in others)]
        assert any(file.startswith(str(sweep.folders[name])) for file in sweep.seen[name]["files"])


def test_variables_of_the_environment_are_those_of_the_sweep(sweep):
    everything = {name: sweep.without_place(name, "environment") for name in JOBS}
    # Each job has wandb's own server process, at an address of its own.
    assert len({found.pop("WANDB_SERVICE") for found in everything.values()}) == len(JOBS)
    first = everything["first"]
    for name, (_, seed) in JOBS.items():
        found = everything[name]
        # Lightning tells its seed to the loaders' processes in variables; a job without a seed must have none.
        expected = {k: v for k, v in first.items() if seed == 0 or not k.startswith("PL_")}
        assert found == expected, name
    assert first["PL_GLOBAL_SEED"] == "0"
    assert {"RANK", "LOCAL_RANK", "SPOILED", "WANDB_RUN_ID"}.isdisjoint(first)


def test_draws_depend_on_the_seed_and_on_nothing_that_ran_before(sweep):
    draws = {name: sweep.seen[name]["draws"] for name in JOBS}
    seeded = [name for name, (_, seed) in JOBS.items() if seed == 0]
    assert [draws[name] for name in seeded] == [draws["first"]] * len(seeded)
    # Python's stream, numpy's and torch's: none repeats without a seed.
    for one, other, known in zip(draws["loose"], draws["other"], draws["first"], strict=True):
        assert len({one, other, known}) == 3


def test_equal_jobs_have_equal_results_wherever_they_stand(sweep):
    times = ("time/",)
    first, last, loose, other = (
        {k: v for k, v in sweep.records[name].metrics.items() if not k.startswith(times)}
        for name in ("first", "last", "loose", "other")
    )
    assert first == last
    assert loose["train/loss"] != other["train/loss"] != first["train/loss"]


def test_each_job_has_a_wandb_run_of_its_own(sweep):
    files = {name: list(folder.glob("wandb/offline-run-*/*.wandb")) for name, folder in sweep.folders.items()}
    ids = {name: sweep.seen[name]["wandb"] for name in JOBS}
    assert len(set(ids.values())) == len(JOBS)
    for name in LOOKED:
        (file,) = files[name]
        found = read(file)
        assert (found["run"].run_id, found["run"].project, found["exit"]) == (ids[name], "lbtrain", 0)
        assert found["config"]["seed"] == sweep.records[name].config["seed"]


def test_a_sweep_outlives_the_process_that_its_jobs_are_forked_from(tmp_path):
    jobs = {"before": ("look", 0), "killer": ("server", 0), "after": ("look", 0)}
    sweep = Sweep(tmp_path, jobs)
    status = {name: record.status for name, record in sweep.records.items()}
    assert status | {"killer": "failed"} == {"before": "finished", "killer": "failed", "after": "finished"}, sweep.done
    assert sweep.seen["before"]["server"] == sweep.seen["killer"]["server"] != sweep.seen["after"]["server"]
    assert sweep.left == []
    assert "Traceback" not in sweep.done.err


@pytest.mark.gpu
def test_jobs_on_a_gpu_start_with_empty_memory_and_without_the_first_ones_cuda(tmp_path):
    jobs = {"first": ("look", 0), "crashes": ("crash", 0), "last": ("look", 0)}
    sweep = Sweep(tmp_path, jobs, "trainer=gpu")
    assert [record.status for record in sweep.records.values()] == ["finished", "failed", "finished"], sweep.done
    # What a job holds is its own: before its model is there, nothing.
    assert [seen["gpu"] for seen in sweep.seen.values()] == [{"held": [0, 0], "server": []}] * len(jobs)
    assert sweep.seen["first"]["draws"] == sweep.seen["last"]["draws"]
