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


def write(path, messages):
    """Write records as wandb does, checksums aside, which its reader here does not look at."""
    data = bytearray(b":W&B\xe1\xbe\x00")
    for message in messages:
        payload, is_first = message.SerializeToString(), True
        while is_first or payload:
            left = _BLOCK - len(data) % _BLOCK
            if left < _HEADER:
                data += bytes(left)
                left = _BLOCK
            part, payload = payload[: left - _HEADER], payload[left - _HEADER :]
            kind = {(True, False): 1, (True, True): 2, (False, True): 3, (False, False): 4}[is_first, bool(payload)]
            data += struct.pack("<IHB", 0, len(part), kind) + part
            is_first = False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def offline_run(job, run_id, *, name="batch_size=16", group="a/sweep", code=0, padding=0, session="20260101_000000"):
    """Put an offline run into the directory of a job as wandb does; return its folder."""
    run, values, end = (wandb_internal_pb2.Record() for _ in range(3))
    run.run.run_id, run.run.display_name, run.run.run_group, run.run.project = run_id, name, group, "lbtrain"
    item = values.history.item.add()
    item.key, item.value_json = "val/loss", "1.5" + "0" * padding
    messages = [wandb_internal_pb2.Record(), run, values]
    if code is not None:
        end.exit.exit_code = code
        messages.append(end)
    folder = job / "wandb" / f"offline-run-{session}-{run_id}"
    write(folder / f"run-{run_id}.wandb", messages)
    latest = job / "wandb" / "latest-run"
    latest.unlink(missing_ok=True)
    latest.symlink_to(folder.name)
    return folder
