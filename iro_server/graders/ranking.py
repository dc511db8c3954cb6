"""Judging within a group: a chat model ranks all completions of a prompt in one answer; rewards are their standings."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from iro_server import JsonObject
from iro_server.graders.base import Item, Reference, Sample
from iro_server.graders.templates import Template

ALONE = "a ranking compares the completions of a prompt, and there is one alone: by itself it has no reward"


class Ranking(BaseModel):
    """``completion``: what the judge is shown of a sample. ``seed``: of the order in which it is shown them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    completion: Template = "{{ sample.output_text }}"
    seed: int = Field(0, ge=-(2**63), lt=2**63)


@dataclass(frozen=True)
class Group:
    """The samples of one item. ``texts``: what is shown of each; ``references``: which of them the others are compared
    with, all where none is one. ``shown``: the distinct texts, in the order in which the judge is shown them."""

    texts: list[str]
    references: list[bool]
    shown: list[str]

    @property
    def instruction(self) -> str:
        """What the judge is told after the input: the answers as JSON, whose quotes no answer can break out of."""
        answers = {str(number): text for number, text in enumerate(self.shown, 1)}
        return (
            f"Here are {len(self.shown)} answers, as a JSON object by number:\n"
            f"{json.dumps(answers, ensure_ascii=False, indent=1)}\n"
            "Rank them from best to worst. Answers that are equally good stand together in a list. End your answer "
            'with a JSON object such as {"ranking": [2, [1, 3]]}, in which each number from 1 to '
            f"{len(self.shown)} stands once."
        )

    def shares(self, places: Sequence[int]) -> list[float]:
        """For each sample the share of the references, itself apart, that it is placed above; a tie counts half.

        ``places``: of each text that was shown, 0 the best. Half where there is no other reference.
        """
        place_of = dict(zip(self.shown, places, strict=True))
        place = [place_of[text] for text in self.texts]
        compared = [i for i, is_reference in enumerate(self.references) if is_reference]
        return [_share(place[i], [place[j] for j in compared if j != i]) for i in range(len(place))]


def group_of(ranking: Ranking, samples: Sequence[Sample], texts: Sequence[str], item: Item) -> Group:
    """The order is shuffled by seed, item and texts, so that over prompts and groups each sample is shown in each
    place."""
    references = [isinstance(sample, Reference) for sample in samples]
    shown = list(dict.fromkeys(texts))
    identity = json.dumps([ranking.seed, item, sorted(shown)], sort_keys=True)
    random.Random(hashlib.sha256(identity.encode()).digest()).shuffle(shown)
    return Group(list(texts), references if any(references) else [True] * len(samples), shown)


def same_item(items: Sequence[JsonObject]) -> list[list[int]]:
    """The places of equal items, by the first."""
    places: dict[str, list[int]] = {}
    for place, item in enumerate(items):
        places.setdefault(json.dumps(item, sort_keys=True), []).append(place)
    return list(places.values())


def _share(place: int, others: Sequence[int]) -> float:
    points = sum((other > place) + (other == place) / 2 for other in others)
    return points / len(others) if others else 0.5
