"""Tasks that show what an alignment job is good for: see README.md."""

from __future__ import annotations

from benchmarks.tasks.arithmetic import ARITHMETIC
from benchmarks.tasks.brevity import BREVITY
from benchmarks.tasks.civility import CIVILITY
from benchmarks.tasks.code import CODE
from benchmarks.tasks.extraction import EXTRACTION
from benchmarks.tasks.instructions import INSTRUCTIONS_TASK
from benchmarks.tasks.keywords import KEYWORDS
from benchmarks.tasks.reading_level import READING_LEVEL
from benchmarks.tasks.sentiment import SENTIMENT
from benchmarks.tasks.task import Task

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        SENTIMENT,
        KEYWORDS,
        INSTRUCTIONS_TASK,
        ARITHMETIC,
        EXTRACTION,
        BREVITY,
        READING_LEVEL,
        CIVILITY,
        CODE,
    )
}
NULL_TASK = CODE.name
"""A task that the default model cannot do: no method is expected to gain."""
