"""Calls of tools and their results, which belong together."""

from __future__ import annotations

from collections.abc import Sequence

from iro_server import JsonObject
from iro_server.api.errors import APIError, bad_request
from iro_server.api.messages import Message

NO_CALL = (
    "messages with role 'tool' must be a response to a preceding message with 'tool_calls', and no call there has the "
    "id {!r}"
)
NO_RESULT = (
    "a message with 'tool_calls' must be followed by a message with role 'tool' for each call, and these have none: {}"
)


def check_results(messages: Sequence[Message]) -> None:
    """400 unless, in the messages of a chat, each call is answered right behind the message that makes it, and each
    result answers one of these calls."""
    if problem := mismatch(messages):
        index, message = problem
        raise bad_request(f"Invalid 'messages.{index}': {message}.", f"messages.{index}")


def mismatch(messages: Sequence[Message]) -> tuple[int, str] | None:
    """The first message whose calls lack a result, or whose result lacks a call, and what is wrong."""
    caller, calls, unanswered = 0, set[str](), list[str]()
    for index, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in calls:
                return index, NO_CALL.format(message.tool_call_id)
            unanswered = [call for call in unanswered if call != message.tool_call_id]
            continue
        if unanswered:
            break
        caller, unanswered = index, [call.id for call in message.tool_calls or []]
        calls = set(unanswered)
    return (caller, NO_RESULT.format(", ".join(unanswered))) if unanswered else None


def check_call_ids(messages: Sequence[JsonObject]) -> None:
    """400 unless, in the messages of a response's conversation, each call has a result and each result a call before
    it. Others may stand between them."""
    unanswered: dict[str, None] = {}
    made: set[str] = set()
    for message in messages:
        calls = [call["id"] for call in message.get("tool_calls", [])]
        made.update(calls)
        unanswered |= dict.fromkeys(calls)
        if message["role"] == "tool":
            if message["tool_call_id"] not in made:
                id = message["tool_call_id"]
                raise _of_input(f"No tool call found for function call output with call_id {id}.")
            unanswered.pop(message["tool_call_id"], None)
    if unanswered:
        raise _of_input(f"No tool output found for function call {next(iter(unanswered))}.")


def _of_input(message: str) -> APIError:
    return bad_request(message, "input")
