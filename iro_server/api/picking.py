"""A search's completions, the best picked by the grader that the model was aligned to."""

from __future__ import annotations

import math
from itertools import cycle, islice

from iro_server.api.context import Context
from iro_server.api.errors import APIError, bad_request
from iro_server.api.generation import Choice, Generated, Generation
from iro_server.api.tools import ToolUse
from iro_server.decoding.selection import top
from iro_server.graders.base import Grade, Sample
from iro_server.telemetry.grading import graded

LACKS_FIELD = "item has no"  # in the error of a grader that reads a field of an empty item


async def pick(request: Generation, generated: Generated, context: Context) -> Generated:
    """``n`` choices, best reward first, where the grader picks; what cannot be graded comes last.

    400 where nothing can; QueueFull where too many calls of the project's graders wait. The rows must be free: a grader
    may ask this server.
    """
    if not request.picked_by_grader:
        return generated
    grades = await context.grading.run(context.caller.project, _grades, request, generated.choices)
    if all(grade.error for grade in grades):
        raise _ungradable(grades[0], request)
    rewards = [-math.inf if grade.error else grade.reward for grade in grades]
    best = islice(cycle(top(rewards, request.n)), request.n)
    return Generated([generated.choices[i] for i in best], generated.usage)


def _grades(request: Generation, choices: list[Choice]) -> list[Grade]:
    assert request.model.grader is not None
    with request.model.grader.use() as grader, graded(grader.type):
        return grader.grade_many([(_sample(choice.text, request.use), request.item) for choice in choices])


def _sample(text: str, use: ToolUse | None) -> Sample:
    content, calls = use.read(text) if use else (text, [])
    return Sample(content, output_tools=[call.as_object() for call in calls])


def _ungradable(grade: Grade, request: Generation) -> APIError:
    """What a grader says may tell of its owner's data: nobody else reads it."""
    message, error = "The model's grader could grade no completion", grade.error or ""
    if not request.model.owned_by_caller:
        return bad_request(f"{message}.", "search.pick")
    hint = "; send the row's fields as `item` of the request" if not request.item and LACKS_FIELD in error else ""
    return bad_request(f"{message}: {error}{hint}", "search.pick")
