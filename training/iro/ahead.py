"""Grading while the next completions are sampled."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

AHEAD = 4  # pieces that wait for their result


def working_ahead(
    pieces: Iterable[Piece], work: Callable[[Piece], Result]
) -> Generator[tuple[Piece, Callable[[], Result]], None, None]:
    """Each piece, in order, with a function that waits for its ``work`` and gives what that returned or raised.

    ``work`` runs in another thread, one piece at a time, while this one makes the next pieces, up to ``AHEAD``.
    Closed early, it waits for the piece that is worked on and drops the others.
    """
    pending: deque[tuple[Piece, Future[Result]]] = deque()
    with ThreadPoolExecutor(1, "grading") as thread:
        try:
            for piece in pieces:
                pending.append((piece, thread.submit(copy_context().run, work, piece)))
                while pending and (pending[0][1].done() or len(pending) > AHEAD):
                    done, future = pending.popleft()
                    yield done, future.result
            while pending:
                done, future = pending.popleft()
                yield done, future.result
        finally:
            for _, future in pending:
                future.cancel()
