"""Start ranks of a module of this folder, wait for them, and end them whatever happens."""

import os
import signal
import socket
from contextlib import suppress
from pathlib import Path

import torch

from tests.warm import Warm

ROOT = Path(__file__).parents[2]


def ranks_of(module, folder, *, count=2, timeout=200):
    """Return what each rank of `python -m tests.distributed.MODULE FOLDER` has written to FOLDER/rankN.pt."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(count), "NODE_RANK": "0"}
    env = {**os.environ, **shared, "OMP_NUM_THREADS": "1"}
    command = ["-m", f"tests.distributed.{module}", str(folder)]
    processes = [Warm(command, ROOT, {**env, "LOCAL_RANK": str(rank)}) for rank in range(count)]
    try:
        said = [process.communicate(timeout) for process in processes]
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, "".join(text)[-3000:]
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(count)]
