"""A user's own directory, with a callback that goes wrong on demand."""

import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.commands import plant


@dataclass
class Planted:
    directory: Path
    small: tuple[str, ...]
    """Arguments of a small run with the callback."""


@pytest.fixture
def planted(tmp_path):
    return planted_in(tmp_path)


@pytest.fixture(scope="module")
def planted_once(tmp_path_factory):
    return planted_in(tmp_path_factory.mktemp("planted"))


def planted_in(directory):
    small = (plant(directory), "trainer.max_epochs=1", "data.batch_size=256", "callbacks=[lr_scaling,fault]")
    return Planted(directory, small)


class Service:
    """A wandb server that only counts who calls; nobody has a key for it."""

    def __init__(self, directory):
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        address = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.variables = {"WANDB_BASE_URL": address, "HOME": str(directory), "NETRC": str(directory / "none")}
        self.variables |= {"WANDB_MODE": None, "WANDB_API_KEY": None, "WANDB_SILENT": None}

    def calls(self):
        count = 0
        with suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                count += 1
        return count

    def close(self):
        self._socket.close()


@pytest.fixture(scope="module")
def wandb_service(tmp_path_factory):
    service = Service(tmp_path_factory.mktemp("home"))
    yield service
    service.close()
