"""/v1/webhook_endpoints: where a project is told what became of its jobs."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from fastapi import APIRouter, Query
from fastapi.concurrency import run_in_threadpool
from pydantic import AfterValidator, AnyHttpUrl, BaseModel, ConfigDict, Field
from sqlalchemy import delete

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx, list_object
from iro_server.api.errors import APIError, bad_request, not_found
from iro_server.api.quotas import check_webhooks
from iro_server.jobs import webhook_sender as webhooks
from iro_server.jobs.deliveries import EVENT_TYPES, EventType, event
from iro_server.jobs.webhook_sender import PrivateAddress, Unreachable, new_secret
from iro_server.settings import is_loopback
from iro_server.store import tables as t

log = logging.getLogger("iro.webhooks")
router = APIRouter(tags=["webhooks"])
DAY = 86_400


def _reachable(url: AnyHttpUrl) -> AnyHttpUrl:
    if url.scheme != "https" and not is_loopback((url.host or "").strip("[]")):
        raise ValueError("must be an https URL; http is for this machine's own addresses")
    return url


Name = Annotated[str, Field(min_length=1, max_length=256)]
Url = Annotated[AnyHttpUrl, AfterValidator(_reachable)]
Types = Annotated[list[EventType], Field(min_length=1)]


class EndpointRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name
    url: Url
    event_types: Types


class EndpointChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    url: Url | None = None
    event_types: Types | None = None


class Rotation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keep_old_secret_active_for_24_hours: bool = False


class TestRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    event_type: EventType


@router.get("/webhook_event_types")
def event_types() -> JsonObject:
    return {"object": "list", "data": list(EVENT_TYPES)}


@router.post("/webhook_endpoints")
def create(body: EndpointRequest, context: Ctx) -> JsonObject:
    """Add an endpoint. Its secret is shown now, and never again."""
    check_webhooks(context)
    created = t.now()
    row = t.WebhookEndpoint(
        id=t.new_id("we_"),
        project=context.caller.project,
        secret=new_secret(),
        created_at=created,
        updated_at=created,
        **_values(body),
    )
    with context.sessions.begin() as session:
        session.add(row)
    return show(row) | {"signing_secret": row.secret}


def _values(body: EndpointRequest | EndpointChange) -> JsonObject:
    values = body.model_dump(mode="json", exclude_none=True)
    if "event_types" in values:
        values["event_types"] = sorted(set(values["event_types"]))
    return values


@router.get("/webhook_endpoints")
def list_endpoints(
    context: Ctx, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
) -> JsonObject:
    return list_object(context, t.WebhookEndpoint, show, limit=limit, after=after)


@router.get("/webhook_endpoints/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(_endpoint(context, id))


@router.post("/webhook_endpoints/{id}")
def update(id: str, body: EndpointChange, context: Ctx) -> JsonObject:
    """Change what is given. Events that wait go to the new URL."""
    row = _endpoint(context, id)
    changed = {name: value for name, value in _values(body).items() if getattr(row, name) != value}
    return show(_change(context, row, **changed) if changed else row)


@router.post("/webhook_endpoints/{id}/rotate_secret")
def rotate_secret(id: str, context: Ctx, body: Rotation | None = None) -> JsonObject:
    """Give the endpoint a new secret, shown now and never again. The old one may go on for a day beside it."""
    row = _endpoint(context, id)
    keep = body is not None and body.keep_old_secret_active_for_24_hours
    old = {"old_secret": row.secret, "old_until": t.now() + DAY} if keep else {"old_secret": None, "old_until": None}
    row = _change(context, row, secret=new_secret(), **old)
    return show(row) | {"signing_secret": row.secret}


@router.post("/webhook_endpoints/{id}/test")
async def test(id: str, body: TestRequest, context: Ctx) -> JsonObject:
    """Send a sample event now; 400 where the endpoint does not answer at all."""
    row = await run_in_threadpool(_endpoint, context, id)
    status = await _send_sample(row, event(body.event_type, {"id": t.new_id("ftjob-")}), context)
    return {
        "object": "webhook_endpoint.test",
        "event_type": body.event_type,
        "status_code": status,
        "success": True,
        "webhook_endpoint_id": id,
    }


async def _send_sample(row: t.WebhookEndpoint, sample: JsonObject, context: Context) -> int:
    """The status of the answer. A server of many tells nobody what listens where, or which names exist: without an
    answer, where a private address refuses the event, and where a name has a private address, each 400 is the same and
    comes after ``TIMEOUT`` seconds. A URL with a private address in place of a name is refused at once."""
    latest = asyncio.get_running_loop().time() + webhooks.TIMEOUT
    keyed = await run_in_threadpool(context.keys_required)
    try:
        async with httpx.AsyncClient(timeout=webhooks.TIMEOUT) as client:
            private = context.settings.webhooks_inside(keyed)
            answer = await webhooks.post(client, context.lookups, row, t.new_id("wh_"), sample, private)
        if keyed and not answer.public and answer.error:
            raise Unreachable(answer.error)
        return answer.status
    except Unreachable as error:
        if isinstance(error, PrivateAddress) and (not keyed or _names_address(row.url)):
            raise bad_request(f"The endpoint is not called: {error}", "url", "webhook_unreachable") from error
        log.info("a sample to %s: %s", row.id, error)
        await asyncio.sleep(latest - asyncio.get_running_loop().time() if keyed else 0)
        raise bad_request("The endpoint does not answer.", "url", "webhook_unreachable") from error


def _names_address(url: str) -> bool:
    """Whether the host of ``url`` is an IP address, which no name server is asked for."""
    try:
        ipaddress.ip_address((urlsplit(url).hostname or "").strip("[]"))
    except ValueError:
        return False
    return True


@router.delete("/webhook_endpoints/{id}")
def remove(id: str, context: Ctx) -> JsonObject:
    """Delete an endpoint, and with it the events that wait for it."""
    mine = delete(t.WebhookEndpoint).where(t.WebhookEndpoint.id == id, *context.owned(t.WebhookEndpoint))
    with context.sessions.begin() as session:
        if session.execute(mine.returning(t.WebhookEndpoint.id)).first() is None:
            raise _missing(id)
    return {"id": id, "object": "webhook_endpoint.deleted", "deleted": True}


def _endpoint(context: Context, id: str) -> t.WebhookEndpoint:
    return context.get(t.WebhookEndpoint, "webhook endpoint", id)


def _missing(id: str) -> APIError:
    return not_found("webhook endpoint", id, "id")


def _change(context: Context, row: t.WebhookEndpoint, **values: object) -> t.WebhookEndpoint:
    with context.sessions.begin() as session:
        endpoint = session.get(t.WebhookEndpoint, row.seq)
        if endpoint is None:  # deleted this instant
            raise _missing(row.id)
        for name, value in (values | {"updated_at": t.now()}).items():
            setattr(endpoint, name, value)
    return endpoint


def show(row: t.WebhookEndpoint) -> JsonObject:
    fields = ("id", "created_at", "updated_at", "name", "url", "event_types")
    shown = {name: getattr(row, name) for name in fields}
    return {"object": "webhook_endpoint", "signing_secret_hint": f"whsec_…{row.secret[-4:]}"} | shown
