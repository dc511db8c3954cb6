"""The rollouts in a run folder: the graded ones for other libraries, and their hidden states removed."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from iro_server.engines.prepare import prepare_model
from iro_server.engines.text_parts import text_of
from training.checkpoints import Checkpoints, open_checkpoints
from training.iro.data import AlignError, numbered_rows
from training.iro.rollouts import HEAD_STATES, PREFIXES, completions_of
from training.json_values import JsonObject

if TYPE_CHECKING:
    from datasets import Dataset

ROLLOUTS = re.compile(r"(\d+)-(tilted-(?:\d+-)?)?(train|heldout)-(\d+)-rollouts")
ROLLOUT_COLUMNS = ("prompt", "completion", "reward", "iteration", "tilted", "heldout", "row")


def export_rollouts(folder: Path) -> Dataset:
    """A row a graded completion: ``prompt``, ``completion``, ``reward``, ``iteration``, ``tilted`` (whether drawn with
    the tilt that the iteration chose), ``heldout`` (of the value fit), ``row`` (the prompt's in the training file, from
    0), and the training row's other fields.

    Rows with ``prompt`` give texts, rows with ``messages`` conversations, TRL's standard and conversational formats;
    ``tools`` of the latter are JSON texts, since Arrow would give each schema the fields of all.
    AlignError where the folder has none, or the training file is gone, has changed or has rows of both kinds.
    """
    from datasets import Dataset
    from transformers import AutoTokenizer

    header = json.loads((folder / "config.json").read_text())
    items = [item for _, item in numbered_rows(_training_file(folder, header))]
    if len({"messages" in item for item in items}) > 1:
        raise AlignError("the training file has rows with prompt and rows with messages, which one table cannot hold")
    tokenizer = AutoTokenizer.from_pretrained(header["config"]["model_dir"] or prepare_model())
    with closing(_checkpoints(folder)) as checkpoints:
        rows = list(_rows(checkpoints, items, tokenizer))
    if not rows:
        raise AlignError(f"{folder} has no graded rollouts yet")
    fields = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: _column([row.get(name) for row in rows]) for name in fields})


def _training_file(folder: Path, header: JsonObject) -> Path:
    """The file that the run in ``folder`` has read: where ``header``, its config.json, says or, after the run was
    moved, in the folder or beside it. AlignError where it is gone or has changed."""
    recorded = Path(header["config"]["training_file"])
    digest = header.get("inputs", {}).get("training_file")  # None: of an earlier version
    places = [recorded] if digest is None else [recorded, folder / recorded.name, folder.parent / recorded.name]
    existing_files = [path for path in places if path.is_file()]
    if not existing_files:
        raise AlignError(f"{recorded} is there no more: the rows of the rollouts' prompts were deleted")
    for path in existing_files:
        if digest is None or hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return path
    raise AlignError(f"the training file {existing_files[0]} has changed since the run; restore it")


def discard_states(folder: Path) -> None:
    """Remove the states that the fit of an unfinished iteration would read: the run will not go on."""
    with closing(_checkpoints(folder)) as checkpoints:
        for name in checkpoints.names():
            if ROLLOUTS.fullmatch(name):
                for table in (PREFIXES, HEAD_STATES):
                    checkpoints.drop_table(name, table)


def _checkpoints(folder: Path) -> Checkpoints:
    location = json.loads((folder / "config.json").read_text()).get("checkpoints")
    return open_checkpoints(location or str(folder / "checkpoints"))


def _rows(checkpoints: Checkpoints, items: Sequence[Mapping[str, Any]], tokenizer: Any) -> Iterator[JsonObject]:
    shards = [match for name in checkpoints.names() if (match := ROLLOUTS.fullmatch(name))]
    for shard in sorted(shards, key=lambda match: (int(match[1]), bool(match[2]), match[3], int(match[4]))):
        rollouts, rewards = shard[0], shard[0].replace("rollouts", "rewards")
        if not checkpoints.has(rewards):  # the last shard of a run that goes on
            continue
        groups = completions_of(checkpoints, rollouts)
        prompts, scores = checkpoints.load(rollouts)["prompts"], checkpoints.load(rewards)["rewards"]
        for prompt, group, of_group in zip(prompts, groups, scores, strict=True):
            for tokens, reward in zip(group, of_group, strict=True):
                if not math.isnan(reward):
                    text = tokenizer.decode(tokens, skip_special_tokens=True)
                    yield _row(items[prompt], text) | {
                        "reward": reward,
                        "iteration": int(shard[1]),
                        "tilted": shard[2] is not None,
                        "heldout": shard[3] == "heldout",
                        "row": prompt,
                    }


def _row(item: Mapping[str, Any], text: str) -> JsonObject:
    fields = {name: value for name, value in item.items() if name not in (*ROLLOUT_COLUMNS, "messages")}
    if "messages" not in item:
        return {"prompt": item["prompt"], "completion": text} | fields
    tools = fields.pop("tools", None)
    if tools:
        fields["tools"] = json.dumps(tools)
    prompt = [_message(message) for message in item["messages"]]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]} | fields


def _message(message: Mapping[str, Any]) -> JsonObject:
    """With its content as one text, and the arguments of its calls as JSON texts, OpenAI's shape."""
    exported = {**message, "content": text_of(message.get("content")) or ""}
    if message.get("tool_calls"):
        exported["tool_calls"] = [call | {"function": _function(call["function"])} for call in message["tool_calls"]]
    return exported


def _function(function: JsonObject) -> JsonObject:
    arguments = function.get("arguments")
    return function if isinstance(arguments, str) else function | {"arguments": json.dumps(arguments)}


def _column(values: Sequence[object]) -> Sequence[object]:
    """The values, as JSON texts where Arrow has no one type for them."""
    import pyarrow as pa

    try:
        pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return [None if value is None else json.dumps(value) for value in values]
    return values
