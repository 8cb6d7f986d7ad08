"""Reads what W&B's client wrote offline: records of its own protocol, in LevelDB's log format."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as protocol

BLOCK, HEADER = 32768, struct.Struct("<IHB")  # of a chunk: checksum, size, kind
WHOLE, LAST = 1, 4  # kinds that end a record


@dataclass
class OfflineRun:
    """What an offline file tells of its run."""

    run: Any = None  # the record itself: id, project, entity, tags, ...
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)  # of its records


def read_offline(path: Path) -> OfflineRun:
    """Read a .wandb file."""
    found = OfflineRun()
    for record in _records(path):
        kind = record.WhichOneof("record_type")
        found.kinds.add(kind)
        if kind == "run":
            found.run = record.run
            found.config |= _values(record.run.config.update)
        elif kind == "history":
            found.history.append(_values(record.history.item))
        elif kind in ("config", "summary"):
            getattr(found, kind).update(_values(getattr(record, kind).update))
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
    return found


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(path: Path) -> Iterator[Any]:
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, parts = 7, b""
    while position + HEADER.size <= len(data):
        left = BLOCK - position % BLOCK
        if left < HEADER.size:  # filled up
            position += left
            continue
        _, size, kind = HEADER.unpack_from(data, position)
        position += HEADER.size
        parts += data[position:position + size]
        position += size
        if kind in (WHOLE, LAST):
            record = protocol.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
