"""Which requests generate now: those whose rows and cached tokens fit. The others wait, a queue for each project; the
next one admitted is of the project that holds the fewest rows."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

SHARED_SECONDS = 60.0  # since a project's last request, during which the server counts as shared with it


class RequestTooLarge(ValueError):
    """A request that is never admitted."""


class TooManyWaiting(Exception):
    """The queue of a project is full."""


@dataclass(eq=False)
class Ticket:
    """A place in the queue and, once ``admitted``, among the requests that generate. ``release`` it, once or more,
    however the request ends."""

    admission: Admission
    project: str
    rows: int
    cache_tokens: int = 0
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    held: bool = True

    def release(self) -> None:
        if self.held:
            self.held = False
            self.admission.free(self)


@dataclass
class Admission:
    """``max_rows`` of all requests together, and ``max_cache_tokens`` tokens whose keys and values they hold (None: any
    number); ``max_waiting`` requests in the queue of each project. A request of more rows than all runs alone.

    ``max_project_rows`` of one project while another project uses the server (None: any number): a step of many rows
    takes longer for all in it. A request of more rows runs while its project has no other.
    """

    max_rows: int
    max_waiting: int
    max_cache_tokens: int | None = None
    max_project_rows: int | None = None
    clock: Callable[[], float] = time.monotonic
    active: int = 0
    active_cache_tokens: int = 0
    active_of: Counter[str] = field(default_factory=Counter)  # rows by project
    waiting: OrderedDict[str, deque[Ticket]] = field(default_factory=OrderedDict)  # by project, next turn first
    last_request: dict[str, float] = field(default_factory=dict)  # by project, of the last SHARED_SECONDS

    def check(self, cache_tokens: int) -> None:
        """RequestTooLarge where so many cached tokens never fit."""
        if self.max_cache_tokens is not None and cache_tokens > self.max_cache_tokens:
            message = (
                f"This request may hold {cache_tokens} tokens in the model's cache, over {self.max_cache_tokens}: its "
                "prompt, and max_tokens for each of its rows. Reduce the prompt, max_tokens, n or the search's rows."
            )
            raise RequestTooLarge(message)

    def queue(self, project: str, rows: int, cache_tokens: int = 0) -> Ticket:
        """A ticket, admitted at once or later. Raises RequestTooLarge, TooManyWaiting."""
        self.check(cache_tokens)
        self._note_request(project)
        ticket = Ticket(self, project, min(rows, self.max_rows), cache_tokens)
        self.waiting.setdefault(project, deque()).append(ticket)
        self._admit()
        if not ticket.admitted.is_set():
            self._check_queue(ticket)
        return ticket

    def free(self, ticket: Ticket) -> None:
        if ticket.admitted.is_set():
            self._give_back(ticket)
        else:
            self._leave_queue(ticket)
        self._admit()

    def _note_request(self, project: str) -> None:
        now = self.clock()
        recent = {name: since for name, since in self.last_request.items() if now - since < SHARED_SECONDS}
        self.last_request = recent | {project: now}

    def _may_add(self, project: str, rows: int) -> bool:
        """Whether the project's share of the rows allows ``rows`` more."""
        active_rows = self.active_of[project]
        if self.max_project_rows is None or not active_rows or active_rows + rows <= self.max_project_rows:
            return True
        start = self.clock() - SHARED_SECONDS
        recent = {name for name, moment in self.last_request.items() if moment > start}
        return {*self.active_of, *self.waiting, *recent} <= {project}

    def _fits(self, ticket: Ticket) -> bool:
        tokens = self.active_cache_tokens + ticket.cache_tokens
        fits_cache = self.max_cache_tokens is None or tokens <= self.max_cache_tokens
        return fits_cache and self.active + ticket.rows <= self.max_rows

    def _take(self, ticket: Ticket) -> None:
        self.active += ticket.rows
        self.active_of[ticket.project] += ticket.rows
        self.active_cache_tokens += ticket.cache_tokens
        ticket.admitted.set()

    def _give_back(self, ticket: Ticket) -> None:
        self.active -= ticket.rows
        self.active_of[ticket.project] -= ticket.rows
        if not self.active_of[ticket.project]:
            del self.active_of[ticket.project]
        self.active_cache_tokens -= ticket.cache_tokens

    def _check_queue(self, ticket: Ticket) -> None:
        """TooManyWaiting, and the ticket leaves, where too many of its project's wait before it."""
        waiting = len(self.waiting[ticket.project]) - 1
        if waiting >= self.max_waiting:
            self._leave_queue(ticket)
            message = f"The server is overloaded: {waiting} requests of this project wait already. Try again soon."
            raise TooManyWaiting(message)

    def _leave_queue(self, ticket: Ticket) -> None:
        self.waiting[ticket.project].remove(ticket)
        if not self.waiting[ticket.project]:
            del self.waiting[ticket.project]

    def _admit(self) -> None:
        """Admit while the next one fits: a smaller one behind it does not overtake it. Projects whose share is used up
        are passed over."""
        while projects := [name for name, queue in self.waiting.items() if self._may_add(name, queue[0].rows)]:
            project = min(projects, key=lambda name: self.active_of[name])  # of equal ones the longest without
            ticket = self.waiting[project][0]
            if not self._fits(ticket):
                return
            self._leave_queue(ticket)
            if project in self.waiting:
                self.waiting.move_to_end(project)
            self._take(ticket)
