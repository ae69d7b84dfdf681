"""Start ranks of a module of this folder, wait for them, and end them whatever happens."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def ranks_of(module, folder, *, count=2, timeout=200):
    """Return what each rank of `python -m tests.distributed.MODULE FOLDER` has written to FOLDER/rankN.pt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"tests.distributed.{module}", str(folder)],
            cwd=ROOT,
            env={**os.environ, **shared, "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]
