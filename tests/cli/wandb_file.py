"""Read an offline wandb run: LevelDB's log format around protobuf records."""

import json
import struct

from wandb.proto import wandb_internal_pb2

_BLOCK, _HEADER = 32768, 7


def records(path):
    """Yield the records of a .wandb file."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, []
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        position += _HEADER
        if kind == 0:
            return
        parts.append(data[position : position + length])
        position += length
        if kind in (1, 4):  # a full record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def read(path):
    """Return what a run's file says: run, config, summary, history, metric definitions and exit code."""
    found = {"config": {}, "summary": {}, "history": [], "metrics": {}, "exit": None}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _items(record.run.config.update)
        elif kind in ("config", "summary"):
            found[kind] |= _items(getattr(record, kind).update)
        elif kind == "history":
            found["history"].append(_items(record.history.item))
        elif kind == "metric":
            found["metrics"][record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "exit":
            found["exit"] = record.exit.exit_code
    return found


def _items(entries):
    return {".".join(entry.nested_key) or entry.key: json.loads(entry.value_json) for entry in entries}
