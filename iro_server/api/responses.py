"""/v1/responses: answers that are stored for a while, so that the next request can go on from one."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import delete, literal, select

from iro_server import JsonObject
from iro_server.api.chat import answer_schema, prompt_ids
from iro_server.api.composition import served_model
from iro_server.api.context import Context, Ctx, Limit, Order, list_page
from iro_server.api.errors import APIError, bad_request, not_found
from iro_server.api.generation import Choice, Generation
from iro_server.api.generation_slot import take_slot
from iro_server.api.options import usage_object
from iro_server.api.quotas import check_responses
from iro_server.api.respond import whole
from iro_server.api.response_items import ITEM, Status, call_item, messages_of
from iro_server.api.response_request import ResponseRequest, as_sent
from iro_server.api.response_stream import ResponseEvents, ResponseStream
from iro_server.api.stored_size import json_bytes
from iro_server.api.tools import ToolUse
from iro_server.store import tables as t
from iro_server.store.tables import new_id, now

router = APIRouter(prefix="/responses", tags=["responses"])
LONGEST_CHAIN = 1000  # responses that one continues


class Answering:
    """One request on its way to a stored response."""

    def __init__(self, body: ResponseRequest, context: Context, use: ToolUse | None, schema: str | None) -> None:
        self.body, self.context, self.use, self.schema = body, context, use, schema
        self.id, self.message_id, self.created = new_id("resp_"), new_id("msg_"), now()
        self.input = [item.stored() for item in body.input]
        if body.store is not False:
            check_responses(context, json_bytes(self.input))
        self.generation = self._generation()

    def _generation(self) -> Generation:
        before = _conversation(self.context, self.body.previous_response_id)
        chat = self.body.chat(before)
        model = served_model(chat.model, chat.search, self.context)
        default = self.context.settings.default_max_tokens
        try:
            token_ids = prompt_ids(chat.messages, model, self.use)
            return chat.generation(
                self.context, model, token_ids, chat.max_tokens, default, schema=self.schema, use=self.use
            )
        except APIError as error:
            raise as_sent(error) from None

    def shown(self, choice: Choice | None = None, usage: JsonObject | None = None) -> JsonObject:
        """The response: in progress without its choice."""
        body, cut = self.body, choice is not None and choice.finish_reason == "length"
        status = "in_progress" if choice is None else "incomplete" if cut else "completed"
        sampling = self.generation.sampling
        response: JsonObject = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": now() if status == "completed" else None,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "output": [] if choice is None else self.output(choice),
            "previous_response_id": body.previous_response_id,
            "temperature": float(sampling.temperature if body.temperature is None else body.temperature),
            "top_p": float(sampling.top_p if body.top_p is None else body.top_p),
            "text": {"format": (body.text and body.text.format) or {"type": "text"}},
            "usage": usage and _usage(usage),
        }
        tools = {
            "tools": [tool.shown() for tool in body.tools or []],
            "tool_choice": "auto" if body.tool_choice is None else body.tool_choice,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
        }
        return response | tools | {"background": False, "truncation": "disabled", "user": body.user}

    def output(self, choice: Choice) -> list[JsonObject]:
        """The message, where the model wrote one, and its calls.

        Where the answer is cut, a required call is incomplete, and so is a message that no call follows. Calls that the
        model chose are read once they are whole.
        """
        content, calls = self.use.read(choice.text) if self.use else (choice.text, [])
        cut = choice.finish_reason == "length"
        status = "incomplete" if cut and not calls else "completed"
        call_status: Status = "incomplete" if cut and self.use and self.use.required else "completed"
        part = {"type": "output_text", "text": content, "annotations": []}
        message = {"id": self.message_id, "type": "message", "role": "assistant", "status": status, "content": [part]}
        return ([message] if content or not calls else []) + [call_item(call, status=call_status) for call in calls]

    def store(self, response: JsonObject) -> None:
        if self.body.store is False:
            return
        row = t.Response(
            id=self.id,
            project=self.context.caller.project,
            previous_id=self.body.previous_response_id,
            input=self.input,
            body=response,
            bytes=json_bytes(self.input) + json_bytes(response),
            expires_at=self.created + round(self.context.settings.response_seconds),
        )
        with self.context.sessions.begin() as session:
            session.add(row)


@router.post("")
async def create(body: ResponseRequest, request: Request, context: Ctx) -> Any:
    """Generate a response, through the same search as a chat completion. It is stored unless ``store`` is false."""
    model = await run_in_threadpool(served_model, body.model, body.search, context)
    use = body.tool_use(model)
    try:
        schema = await answer_schema(body.response_format, use, context, model)
    except APIError as error:
        raise as_sent(error) from None
    answering = await run_in_threadpool(Answering, body, context, use, schema)
    generation = answering.generation
    slot = take_slot(request, context, [generation])
    if body.stream:
        events = ResponseEvents(answering.message_id, answering.shown(), use)
        stream = ResponseStream([generation], events, {}, False, slot)
        stream.shown, stream.store = answering.shown, answering.store
        return stream.response()
    (generated,) = await whole(request, [generation], slot)
    response = answering.shown(generated.choices[0], usage_object([generation], [generated]))
    await run_in_threadpool(answering.store, response)
    return response


@router.get("/{id}")
def retrieve(
    id: str, context: Ctx, include: Annotated[list[str] | None, Query()] = None, stream: bool = False
) -> JsonObject:
    if stream:
        message = "Unsupported parameter: 'stream': a stored response is sent whole."
        raise bad_request(message, "stream", "unsupported_parameter")
    return _stored(context, id).body


@router.delete("/{id}")
def remove(id: str, context: Ctx) -> JsonObject:
    """Delete a response. Those that continue it can be read, and not be continued any more."""
    gone = delete(t.Response).where(t.Response.id == id, *context.owned(t.Response), t.Response.unexpired())
    with context.sessions.begin() as session:
        if session.execute(gone.returning(t.Response.id)).first() is None:
            raise not_found("response", id, "id")
    return {"id": id, "object": "response", "deleted": True}


@router.get("/{id}/input_items")
def input_items(
    id: str,
    context: Ctx,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "desc",
    include: Annotated[list[str] | None, Query()] = None,
) -> JsonObject:
    """The items of the response's own input, without those of the responses that it continues."""
    return list_page(_stored(context, id).input, "item", limit=limit, after=after, ascending=order == "asc")


def _stored(context: Context, id: str, param: str = "id") -> t.Response:
    return context.get(t.Response, "response", id, param, t.Response.unexpired())


def _conversation(context: Context, previous_id: str | None) -> list[JsonObject]:
    """The messages up to and with the response ``previous_id``. 404 where one on the way is gone."""
    if previous_id is None:
        return []
    rows = _chain(context, previous_id)
    if len(rows) > LONGEST_CHAIN:
        message = f"The conversation has more than {LONGEST_CHAIN} responses; send its messages as input."
        raise bad_request(message, "previous_response_id", "conversation_too_long")
    missing = rows[-1].previous_id if rows else previous_id
    if missing is not None:
        raise not_found("response", missing, "previous_response_id")
    turns = ([*row.input, *row.body["output"]] for row in reversed(rows))
    return [message for turn in turns for message in messages_of(map(ITEM.validate_python, turn))]


def _chain(context: Context, last_id: str) -> list[t.Response]:
    """The response ``last_id``, the one it continues and so on, up to one more than a conversation may have, as far as
    they are there."""
    visible = (*context.owned(t.Response), t.Response.unexpired())
    last = select(t.Response.id, t.Response.previous_id, literal(0).label("age"))
    chain = last.where(t.Response.id == last_id, *visible).cte(recursive=True)
    before = select(t.Response.id, t.Response.previous_id, chain.c.age + 1)
    chain = chain.union_all(
        before.join(chain, t.Response.id == chain.c.previous_id).where(chain.c.age < LONGEST_CHAIN, *visible)
    )
    with context.sessions() as session:
        rows = session.scalars(select(t.Response).join(chain, t.Response.id == chain.c.id).order_by(chain.c.age))
        return list(rows)


def _usage(usage: JsonObject) -> JsonObject:
    """A chat completion's usage in the fields of a response, with the same extensions."""
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    fields: JsonObject = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
    fields |= {"total_tokens": usage["total_tokens"], "output_tokens_details": {"reasoning_tokens": 0}}
    fields["input_tokens_details"] = {"cached_tokens": cached, "cache_write_tokens": 0}
    extensions = ("base_tokens", "value_tokens", "rounds", "kl")
    return fields | {name: usage[name] for name in extensions if name in usage}
