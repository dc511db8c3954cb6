"""The rows of metrics.jsonl for other tools: as a table, and as TensorBoard scalars."""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from training.json_values import JsonObject

Row = Mapping[str, object]
LABELS = ("type", "name", "model")  # what tells the objects of a list apart
SERIES = (  # what tells the rows of a run apart that measure the same
    *("study", "kind", "environment", "topology", "level", "trial", "training"),
    *("task", "method", "algorithm", "agent", "learner", "log", "patients"),
)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """The numbers and strings in ``value`` by their path, such as ``timing/step/eval`` or ``betas/0``.

    An object in a list goes by its labels instead of its place: ``scores/graders/python/style/train_reward_mean``.
    """
    if not isinstance(value, Mapping | list | tuple):
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, item in _items(value):
        flat |= flatten(item, f"{prefix}/{key}" if prefix else key)
    return flat


def _items(value: Mapping | list | tuple) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((str(key), item) for key, item in value.items())
        return
    for place, item in enumerate(value):
        labels = [label for label in LABELS if label in item] if isinstance(item, Mapping) else []
        if labels:
            rest = {key: content for key, content in item.items() if key not in labels}
            yield "/".join(str(item[label]) for label in labels), rest
        else:
            yield str(place), item


def read_rows(folder: Path) -> list[JsonObject]:
    """The rows of a run folder's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metrics_csv(folder: Path) -> str:
    """metrics.jsonl as a table: ``step`` first, other columns as they first come up; what a row lacks is empty."""
    rows = [flatten(row) for row in read_rows(folder)]
    columns = dict.fromkeys(["step", *(name for row in rows for name in row)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class Board:
    """A TensorBoard folder. It is written anew from ``rows``, so that what a killed run lost leaves no trace in it.

    A tag begins with the row's texts under the names of SERIES: ``meta/ED/accuracy``. Numbers of rows without a "step"
    are counted by their tag.

    By the event file's own writer: SummaryWriter's thread waits for ever once the disk is full.
    """

    def __init__(self, folder: Path, rows: Iterable[Row]):
        from tensorboardX.event_file_writer import EventsWriter

        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        self._writer = EventsWriter(str(folder / "events"))
        self._points: Counter[str] = Counter()  # by tag
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        series = [str(row[name]) for name in SERIES if isinstance(row.get(name), str)]
        for name, value in flatten(row).items():
            if name != "step" and isinstance(value, int | float):
                tag = "/".join([*series, name])
                step = row.get("step", self._points[tag])
                self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(tag, value)))
                self._points[tag] += 1
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
