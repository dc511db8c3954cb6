"""Grades of completions, and what the grades of many of them come to."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from cachetools import LRUCache

from iro_server import JsonObject
from iro_server.engines.describe import Description
from iro_server.engines.tool_calls import tool_calls_of
from iro_server.graders.base import Flag, Grade, Grader, Reference, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.response_format import parse_response_format
from iro_server.telemetry.grading import graded
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt
from training.run import Run

Tally = dict[str, dict[str, float]]
"""Counts and sums that shards add up to. ``samples``: all, unrewarded. ``errors``: by flag. ``score_sums``, ``scored``:
by grader. ``grader_tokens``, ``grader_costs``: by model. ``usage``: tokens of the searches."""
Key = tuple[str, str]  # of the item, and the text
REMEMBERED = 2**16  # grades that are remembered
REFERENCES = 8  # texts of an item that later ones are compared with
PARSE_ERROR: Flag = "sample_parse_error"


class Grading:
    """What a completion is worth to the job: 0 without the response format, else what the grader says."""

    def __init__(self, config: AlignConfig, run: Run, model: Description, grader: Grader):
        self.config, self.run, self.model, self.grader = config, run, model, grader
        self.format = parse_response_format(config.response_format or {"type": "text"})
        self._grades: LRUCache[Key, Grade] = LRUCache(REMEMBERED)
        self._references: dict[str, list[Sample]] = {}  # by item as JSON, of a grader that compares
        self._max_judge_tokens = GraderEnvironment.of_this_process().max_judge_tokens
        self.total: Tally = {}  # of the steps that are done

    def grade(self, prompts: Sequence[Prompt], tokens: Sequence[Sequence[Sequence[int]]]) -> list[list[Grade]]:
        """A grade for each completion of each prompt; its reward is NaN where the grader gave none.

        The grader is asked once about a text of an item in the life of this object, and again where it failed. Not for
        two threads at once. A grader that compares is asked about all again, with references beside them.
        """
        if self.compares:
            return self._compare(prompts, self.texts(tokens))
        keys = [
            [(self._key(prompt), self._text(completion)) for completion in group]
            for prompt, group in zip(prompts, tokens, strict=True)
        ]
        item_of = {key: prompt.item for group, prompt in zip(keys, prompts, strict=True) for key in group}
        grades = {key: self._grades[key] for key in item_of if key in self._grades}
        samples = {key: self._sample(key[1], item) for key, item in item_of.items() if key not in grades}
        samples_to_grade = {key: sample for key, sample in samples.items() if isinstance(sample, Sample)}
        answers: list[Grade] = []
        if samples_to_grade:
            with graded(self.grader.type):
                answers = self.grader.grade_many([(sample, item_of[key]) for key, sample in samples_to_grade.items()])
        grades |= {key: sample for key, sample in samples.items() if isinstance(sample, Grade)}
        grades |= dict(zip(samples_to_grade, answers, strict=True))
        group_grades = [[self._give(key, grades) for key in group] for group in keys]
        self._grades.update({key: grade for key, grade in grades.items() if not math.isnan(grade.reward)})
        return group_grades

    def _compare(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> list[list[Grade]]:
        """Grades of all texts of an item together. The first that were graded of it are the references of the later
        ones, so that policies compare by how many of the same texts theirs are better than."""
        samples = [
            [self._sample(text, prompt.item) for text in group] for prompt, group in zip(prompts, texts, strict=True)
        ]
        pairs = [
            (sample, prompt.item)
            for prompt, group in zip(prompts, samples, strict=True)
            for sample in group
            if isinstance(sample, Sample)
        ]
        items = {json.dumps(item, sort_keys=True): item for _, item in pairs}
        references = [
            (Reference(**vars(sample)), item) for key, item in items.items() for sample in self._references.get(key, [])
        ]
        answers: list[Grade] = []
        if pairs:
            with graded(self.grader.type):
                answers = self.grader.grade_many([*pairs, *references])
        grades = iter(answers)
        self.refer(prompts, texts)
        return [[next(grades) if isinstance(sample, Sample) else sample for sample in group] for group in samples]

    def refer(self, prompts: Sequence[Prompt], texts: Sequence[Sequence[str]]) -> None:
        """Take texts that were graded as references, of the items that have none yet."""
        first: dict[str, list[Sample]] = {}
        for prompt, group in zip(prompts, texts, strict=True):
            graded_texts = [self._sample(text, prompt.item) for text in group]
            of_item = first.setdefault(json.dumps(prompt.item, sort_keys=True), [])
            of_item += [sample for sample in graded_texts if isinstance(sample, Sample)]
        for item, samples in first.items():
            self._references.setdefault(item, samples[:REFERENCES])

    @staticmethod
    def _give(key: Key, grades: dict[Key, Grade]) -> Grade:
        """The grade, whose tokens count the first time alone."""
        grade = grades[key]
        grades[key] = replace(grade, tokens={}, costs={})
        return grade

    @staticmethod
    def _key(prompt: Prompt) -> str:
        return hashlib.sha256(json.dumps(prompt.item, sort_keys=True).encode()).hexdigest()

    @property
    def compares(self) -> bool:
        """Whether a completion's grade depends on the others of its prompt."""
        return self.grader.compares

    def texts(self, tokens: Sequence[Sequence[Sequence[int]]]) -> list[list[str]]:
        return [[self._text(completion) for completion in group] for group in tokens]

    def _text(self, completion: Sequence[int]) -> str:
        return str(self.model.tokenizer.decode(list(completion), skip_special_tokens=True))

    def _sample(self, text: str, item: JsonObject) -> Sample | Grade:
        content, calls = tool_calls_of(self.model.tokenizer, item, text)
        if calls:
            return Sample(content, output_tools=calls)
        try:
            return Sample(text, output_json=self.format.parse(text))
        except ValueError as error:
            return Grade(0.0, error=f"response_format: {error}", flag=PARSE_ERROR)

    def check(self, by_prompt: Sequence[Sequence[Grade]], first: bool = False) -> None:
        """Warn of what was not graded.

        AlignError if the ``first`` batch shows that the grader does not work, or for a reward that the loss cannot use.
        """
        grades = [grade for group in by_prompt for grade in group]
        failed = [grade.error for grade in grades if math.isnan(grade.reward)]
        if first and len(failed) > len(grades) / 2:
            message = f"the grader failed on {len(failed)} of {len(grades)} samples: {failed[0]}"
            raise AlignError(message, "grader_error", "grader")
        if failed:
            self._warn(f"{len(failed)} of {len(grades)} samples could not be graded and were left out: {failed[0]}")
        formless = [grade.error for grade in grades if grade.error is not None and grade.reward == 0]
        if first and formless:
            self._warn(f"{len(formless)} of {len(grades)} samples get the reward 0: {formless[0]}")
        outside = next((grade.reward for grade in grades if grade.reward < 0 or grade.reward > 1), None)
        if self.config.loss == "bce" and outside is not None:
            raise AlignError(f"loss bce takes rewards in [0, 1]; the grader gave {outside}", "invalid_reward", "loss")

    def charge(self, tally: Tally) -> None:
        """Count what a finished step took, in this process or before. AlignError where the judges took more than their
        limit."""
        self.total = merge([self.total, tally])
        limit, judge_tokens = self._max_judge_tokens, sum(self.total["grader_tokens"].values())
        if limit is not None and judge_tokens > limit:
            message = f"the graders' models took {judge_tokens:.0f} tokens; a job's limit is {limit} tokens"
            raise AlignError(message, "judge_token_limit", "grader")

    def _warn(self, message: str) -> None:
        self.run.emit("message", message, level="warn")

    def tally(self, grades: Iterable[Grade], usage: Mapping[str, float]) -> Tally:
        counts: Tally = {
            part: {} for part in ("samples", "errors", "score_sums", "scored", "grader_tokens", "grader_costs")
        }

        def add(part: str, name: str, count: float = 1) -> None:
            counts[part][name] = counts[part].get(name, 0) + count

        for grade in grades:
            add("samples", "all")
            if math.isnan(grade.reward):
                add("samples", "unrewarded")
            if grade.error is not None:
                add("errors", grade.flag)
            for name, score in (grade.sub_rewards or {self.grader.name: grade.reward}).items():
                if not math.isnan(score):
                    add("score_sums", name, score)
                    add("scored", name)
            for model, tokens in grade.tokens.items():
                add("grader_tokens", model, tokens)
            for model, cost in grade.costs.items():
                add("grader_costs", model, cost)
        return counts | {"usage": dict(usage)}


def merge(tallies: Iterable[Tally]) -> Tally:
    total: Tally = {}
    for tally in tallies:
        for part, counts in tally.items():
            into = total.setdefault(part, {})
            for name, count in counts.items():
                into[name] = into.get(name, 0) + count
    return total
