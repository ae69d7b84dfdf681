"""What the local launcher gains by running jobs side by side, and what it costs per job.

    python benchmarks/bench_packing.py
    python benchmarks/bench_packing.py --jobs 4 --epochs 1     # short, to see that it works

Prints one JSON line per case; the last line is the environment. If a bound is exceeded, the script says which and
fails. A ratio above the bound on a machine with other work says little: see the load in the last line.

`case: packing`. The same sweep of equal jobs of one thread, side by side and one after the other (slots=1), each as a
command of its own, start-up included; in turns, the other one first in every second turn.
  jobs, cores          jobs of the sweep; CPU cores, that is jobs at a time
  packed_s, serial_s   seconds of the whole command, median over turns
  ratio, low, high     packed over serial, median and quartiles over turns
`case: launcher`. Jobs that do nothing, one after the other, through the launcher's own loop, forked from a server that
has imported all: what it takes to start a process, to give it its log and its random numbers, and to see its end.
  empty_jobs           jobs
  per_job_s            seconds per job, the mean over them
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path

from lbtrain.app.sweep.job import Job
from lbtrain.app.sweep.jobs import Limits, run_jobs
from lbtrain.app.sweep.needs import Machine
from lbtrain.app.sweep.progress import Progress
from lbtrain.app.sweep.slots import Slots
from lbtrain.records import read_record

ROOT = Path(__file__).parents[1]
JOB = ("data.batch_size=64", "callbacks=[lr_scaling]")


def sweep(options: argparse.Namespace, slots: int | None) -> float:
    """Return the seconds of a whole sweep, as a user would start it."""
    seeds = ",".join(map(str, range(options.jobs)))
    with tempfile.TemporaryDirectory() as directory:
        words = [f"seed={seeds}", "data.seed=0", f"trainer.max_epochs={options.epochs}", *JOB]
        words += [f"hydra.sweep.dir={directory}/sweep", f"hydra.launcher.slots={slots or 'null'}"]
        since = time.perf_counter()
        command = [sys.executable, str(ROOT / "train.py"), "-m", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - since


def measure_packing(options: argparse.Namespace) -> dict:
    """Return the line of the sweep side by side and one after the other."""
    times: dict[int | None, list[float]] = {None: [], 1: []}
    for turn in range(options.repeats):
        for slots in (None, 1) if turn % 2 == 0 else (1, None):
            times[slots].append(sweep(options, slots))
    ratios = sorted(packed / serial for packed, serial in zip(times[None], times[1], strict=True))
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    row = {"case": "packing", "jobs": options.jobs, "cores": len(os.sched_getaffinity(0))}
    row |= {"packed_s": round(statistics.median(times[None]), 2), "serial_s": round(statistics.median(times[1]), 2)}
    return row | dict(zip(("ratio", "low", "high"), (round(ratio, 3) for ratio in quartiles), strict=True))


def measure_launcher(options: argparse.Namespace) -> dict:
    """Return the line of jobs that do nothing."""
    # The server is a Python of its own, which finds instant_job.py by this alone.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lbtrain.app.train", "lbtrain.app.cli", "instant_job"])
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        places = [Path(directory) / str(number) for number in range(options.empty_jobs + 1)]
        first, *jobs = [Job(place.name, "", (), place, (str(place),), {}) for place in places]
        run(context, [first])  # starts the server, which imports
        since = time.perf_counter()
        run(context, jobs)
        seconds = (time.perf_counter() - since) / len(jobs)
        for place in places:
            record = read_record(place)
            if record is None or record.status != "finished":
                sys.exit(f"an empty job did not finish: {record}")
    return {"case": "launcher", "empty_jobs": len(jobs), "per_job_s": round(seconds, 4)}


def run(context: BaseContext, jobs: list[Job]) -> None:
    """Run jobs one after the other, as a sweep does."""
    machine = Machine(1)
    run_jobs(context, jobs, machine, Slots(machine), Limits(), Progress(len(jobs), 1))


def environment() -> dict:
    """Return the line that says where the others come from."""
    load = round(os.getloadavg()[0], 2)
    return {"case": "environment", "python": platform.python_version(), "device": platform.machine(), "load": load}


def exceeded(row: dict, options: argparse.Namespace) -> str | None:
    """Return what to say about a line that is over its bound."""
    if row["case"] == "packing" and row["ratio"] > options.packing_bound:
        return f"packed jobs take {row['ratio']} of the time of one after the other, more than {options.packing_bound}"
    if row["case"] == "launcher" and row["per_job_s"] > options.launcher_bound:
        return f"the launcher takes {row['per_job_s']} s per job, more than {options.launcher_bound}"
    return None


def rows(options: argparse.Namespace) -> Iterator[dict]:
    """Measure all cases."""
    if "packing" in options.case:
        yield measure_packing(options)
    if "launcher" in options.case:
        yield measure_launcher(options)
    yield environment()


def parsed() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=("packing", "launcher"), default=["packing", "launcher"])
    parser.add_argument("--jobs", type=int, default=16, help="jobs of the sweep")
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data of each job")
    parser.add_argument("--empty-jobs", type=int, default=20, help="jobs that do nothing")
    parser.add_argument("--repeats", type=int, default=1, help="turns, that is sweeps of either kind")
    parser.add_argument("--packing-bound", type=float, default=0.60, help="largest ratio of packing")
    parser.add_argument("--launcher-bound", type=float, default=0.3, help="most seconds of the launcher per job")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    complaints = []
    for row in rows(options):
        print(json.dumps(row), flush=True)
        complaints.append(exceeded(row, options))
    if any(complaints):
        sys.exit("\n".join(complaint for complaint in complaints if complaint))


if __name__ == "__main__":
    main()
