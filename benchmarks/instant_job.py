"""Put a job that does nothing in the place of training, in the server from which jobs are forked."""

import sys

from lbtrain.app import cli
from lbtrain.records import RunRecord, write_record


def leave_a_record() -> None:
    """Leave what a job that has finished leaves."""
    write_record(sys.argv[0], RunRecord("instant", "finished", None, (), {}, {}, {}, None, "", 0.0))


cli.main = leave_a_record
