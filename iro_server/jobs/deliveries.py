"""Events that wait to be sent, as the database keeps them. One server at a time holds each."""

from __future__ import annotations

import random
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from iro_server import JsonObject
from iro_server.store.database import Sessions
from iro_server.store.tables import Delivery, WebhookEndpoint, new_id, now

EventType = Literal["fine_tuning.job.succeeded", "fine_tuning.job.failed", "fine_tuning.job.cancelled"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)
LEASE = 60.0  # seconds that a server has for an attempt before another may make the next
BACKOFF = 5.0  # seconds to the second attempt; twice as long to each later one
MAX_BACKOFF = 8 * 3600.0
GIVE_UP = 3 * 86400.0  # seconds after the event


@dataclass(frozen=True)
class Attempt:
    delivery: Delivery
    endpoint: WebhookEndpoint


def event(type: str, data: JsonObject) -> JsonObject:
    return {"id": new_id("evt_"), "object": "event", "created_at": now(), "type": type, "data": data}


def enqueue(session: Session, project: str, type: str, data: JsonObject) -> None:
    """Have the project's endpoints that listen for ``type`` told, should the transaction of ``session`` commit."""
    payload = event(type, data)
    listening = select(WebhookEndpoint).where(WebhookEndpoint.project == project).order_by(WebhookEndpoint.seq)
    for endpoint in session.scalars(listening.with_for_update(read=True, key_share=True)).all():
        if type in endpoint.event_types:
            session.add(Delivery(id=new_id("wh_"), endpoint_id=endpoint.id, payload=payload, due=time.time()))


def claim(sessions: Sessions, most: int, busy: Collection[str]) -> list[Attempt]:
    """Up to ``most`` attempts that are due and now ours: the oldest of each endpoint that is not ``busy``."""
    due = (Delivery.due <= time.time(), Delivery.endpoint_id.not_in(busy))
    oldest = select(func.min(Delivery.seq)).where(*due).group_by(Delivery.endpoint_id)
    oldest = oldest.order_by(func.min(Delivery.due)).limit(most)
    with sessions() as session:
        if not (candidates := session.scalars(oldest).all()):
            return []
    with sessions.begin() as session:
        ours = update(Delivery).where(Delivery.seq.in_(candidates), Delivery.due <= time.time())
        ours = ours.values(due=time.time() + LEASE, attempts=Delivery.attempts + 1)
        taken = session.scalars(ours.returning(Delivery.seq)).all()
        pairs = select(Delivery, WebhookEndpoint).join(WebhookEndpoint, WebhookEndpoint.id == Delivery.endpoint_id)
        rows = session.execute(pairs.where(Delivery.seq.in_(taken))).all()
        return [Attempt(delivery, endpoint) for delivery, endpoint in rows]


def settle(sessions: Sessions, delivery: Delivery, error: str | None, final: bool) -> None:
    """Note how an attempt went. ``error`` None: well. Any other is tried again later, unless it is ``final``."""
    due = None
    if error is not None and not final:
        wait = min(MAX_BACKOFF, BACKOFF * 2 ** min(delivery.attempts - 1, 20)) * random.uniform(0.75, 1.25)
        if time.time() + wait < delivery.created_at + GIVE_UP:
            due = time.time() + wait
    mine = (Delivery.id == delivery.id, Delivery.attempts == delivery.attempts)  # unless the lease ran out
    with sessions.begin() as session:
        session.execute(update(Delivery).where(*mine).values(due=due, last_error=error))
