"""A callback that writes down the process of its job, and then spoils all of it or ends it by force."""

PROBE = """
import faulthandler
import json
import logging
import os
import random
import signal
import sys
import threading
import warnings
from pathlib import Path

import matplotlib
import numpy
import torch

from lbtrain._lightning import Callback

SIGNALS = ("SIGINT", "SIGTERM", "SIGCHLD", "SIGHUP", "SIGUSR1", "SIGALRM", "SIGPIPE")


def settings():
    return {
        "dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
        "matmul": [torch.get_float32_matmul_precision(), torch.backends.cuda.matmul.allow_tf32],
        "threads": torch.get_num_threads(),
        "anomaly": torch.is_anomaly_enabled(),
        "cuda": [torch.cuda.is_initialized(), getattr(torch.cuda, "_cached_device_count", None)],
        "dpi": matplotlib.rcParams["figure.dpi"],
        "printing": numpy.get_printoptions()["precision"],
    }


def process():
    loggers = ("", "lightning.pytorch", "pytorch_lightning", "wandb", "matplotlib")
    return {
        "cwd": os.getcwd(),
        "path": sys.path,
        "mask": os.umask(os.umask(0)),
        "signals": [str(signal.getsignal(getattr(signal, name))).split(" at 0x")[0] for name in SIGNALS],
        "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "hook": sys.excepthook.__module__,
        "filters": len(warnings.filters),
        "loggers": {name: [len(logging.getLogger(name).handlers), logging.getLogger(name).level] for name in loggers},
        "recursion": sys.getrecursionlimit(),
        "spoiled": hasattr(torch, "spoiled"),
    }


def opened(pid):
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            continue
    return sorted(name for name in found if name.startswith("/"))


def gpu():
    held = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    # A process that has started CUDA keeps the devices open, and what it forks cannot use them.
    return {"held": held, "server": [name for name in opened(os.getppid()) if name.startswith("/dev/nvidia")]}


def spoil(directory):
    os.environ.update(SPOILED="1", WANDB_RUN_ID="spoiled", WANDB_PROJECT="spoiled", RANK="1", OMP_NUM_THREADS="7")
    os.environ.pop("HOME")
    for stream in (random, numpy.random, torch.random):
        getattr(stream, "manual_seed", getattr(stream, "seed", None))(1)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(3)
    torch.autograd.set_detect_anomaly(True)
    torch.backends.cudnn.benchmark = torch.spoiled = True
    matplotlib.rcParams["figure.dpi"] = 7
    numpy.set_printoptions(precision=1)
    os.umask(0o777)
    for name in SIGNALS:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sys.excepthook = print
    warnings.simplefilter("ignore")
    sys.path.insert(0, "/spoiled")
    sys.setrecursionlimit(500_000)
    for name in ("", "lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).setLevel("CRITICAL")
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    globals()["kept_open"] = (directory / "kept_open").open("w")
    os.chdir("/")


class Probe(Callback):
    def __init__(self, directory, kind="look"):
        self.directory, self.kind = Path(directory), kind

    def setup(self, trainer, pl_module, stage):
        if stage != "fit":
            return
        wandb = sys.modules.get("wandb")
        seen = {"settings": settings(), "process": process(), "argv": sys.argv, "pid": os.getpid()}
        seen |= {"server": os.getppid(), "environment": dict(os.environ), "wandb": wandb and wandb.run and wandb.run.id}
        seen |= {"files": [name for name in opened("self") if not name.startswith(("/dev/", "/proc/"))], "gpu": gpu()}
        seen["draws"] = [random.random(), numpy.random.random(), torch.rand(()).item()]
        (self.directory / "seen.json").write_text(json.dumps(seen, default=str))

    def on_train_epoch_end(self, trainer, pl_module):
        if self.kind == "spoil":
            spoil(self.directory)
            raise RuntimeError("spoiled")
        if self.kind == "exit":
            os._exit(7)
        if self.kind == "crash":
            faulthandler._sigsegv()
        if self.kind == "server":
            os.kill(os.getppid(), signal.SIGKILL)
"""
PROBE_YAML = """
probe:
  _target_: planted_probe.Probe
  directory: ${hydra:runtime.output_dir}
  kind: look
"""


def plant(directory, experiments):
    """Write the callback and one experiment per job, by name: what it does and its seed; return the arguments."""
    (directory / "planted_probe.py").write_text(PROBE)
    for group in ("callbacks", "experiment"):
        (directory / "own" / group).mkdir(parents=True)
    (directory / "own" / "callbacks" / "probe.yaml").write_text(PROBE_YAML)
    for name, (kind, seed) in experiments.items():
        text = f"# @package _global_\nseed: {seed}\ndata:\n  seed: 0\ncallbacks:\n  probe:\n    kind: {kind}\n"
        (directory / "own" / "experiment" / f"{name}.yaml").write_text(text)
    small = ["--config-dir=own", "trainer.max_epochs=1", "data.batch_size=256", "model=mlp"]
    small += ["callbacks=[lr_scaling,probe]"]
    return [*small, f"experiment={','.join(experiments)}"]
