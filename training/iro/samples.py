"""Answers of each iteration to the same held-out prompts, for people to read beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from iro_server.engines.text_parts import text_of
from training.iro.data import Prompt
from training.json_values import JsonObject
from training.run import Run

PROMPTS = 4
CHARACTERS = 2000  # of a prompt, of which the end is kept, and of a completion


def emit_samples(run: Run, step: int, prompts: Sequence[Prompt], rows: Sequence[JsonObject]) -> None:
    """An event with the first prompts, the completions that the policy of ``step`` picks there, and their rewards.

    ``step`` 0: the frozen model. ``rows``: of ``Validation``, in the order of ``prompts``.
    """
    samples = [
        {"prompt": prompt_text(prompt.item)[-CHARACTERS:], "completion": row["text"][:CHARACTERS], "reward": reward}
        for prompt, row in zip(prompts, rows, strict=True)
        if (reward := row.get("text_reward")) is not None
    ][:PROMPTS]
    if samples:
        policy = f"iteration {step}" if step else "the frozen model"
        message = f"Samples of {policy} on {len(samples)} held-out prompts"
        run.emit("message", message, {"step": step, "samples": samples})


def prompt_text(item: Mapping[str, Any]) -> str:
    """The text to continue, or the last message of a conversation, which an answer follows."""
    return str(item["prompt"] if "prompt" in item else text_of(item["messages"][-1].get("content") or ""))
