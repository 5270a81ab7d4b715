"""What loggers have written: TensorBoard's events by its own reader, wandb's offline files, LevelDB's log of protobuf
records, by one of these tests'."""

from __future__ import annotations

import importlib
import json
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER = 32768, 7


@dataclass
class Part:
    """What one process has logged to a run. rows: its history, values by name; axes: the x axis by pattern."""

    run_id: str = ""
    name: str = ""
    project: str = ""
    resumes: bool = False
    exit_code: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def records(path: Path) -> list[bytes]:
    """The records of a file; one that was cut at its end is left out."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    found, parts, place = [], b"", HEADER
    while place + HEADER <= len(data):
        if BLOCK - place % BLOCK < HEADER:
            place += BLOCK - place % BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            found.append(parts)
            parts = b""
    return found


def read_part(path: Path) -> Part:
    """A `.wandb` file."""
    internal: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    part = Part()
    for data in records(path):
        record = internal.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            part.run_id, part.name = record.run.run_id, record.run.display_name
            part.project = record.run.project
            part.resumes = record.run.resume
            part.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
        elif kind == "config":
            for item in record.config.update:
                part.config["/".join([item.key, *item.nested_key])] = json.loads(item.value_json)
        elif kind == "history":
            items = record.history.item
            part.rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
        elif kind == "metric" and record.metric.step_metric:
            part.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
        elif kind == "exit":
            part.exit_code = record.exit.exit_code
    return part


def read_parts(log: Path) -> list[Part]:
    """The parts below a log directory, in the order in which they began."""
    import wandb

    wandb.teardown()  # its process may still hold the end of a file
    return [read_part(path) for path in sorted(log.glob("wandb/offline-run-*/*.wandb"))]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each metric, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
