"""Whether an answer is what the official client's published types say: nothing missing, nothing wrong, nothing more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

# What the client's types do not know, by the type's name and the field's.
EXTENSIONS = {
    "Model.iro": "how an aligned model searches, its job and its base",
    "CompletionUsage.base_tokens": "what a search cost: tokens drawn from the frozen model,",
    "CompletionUsage.value_tokens": "tokens scored by the value functions,",
    "CompletionUsage.rounds": "rounds of the search",
    "ChatCompletionChunk.search": "a round of the search, where stream_options.include_search asks for it;",
    "Completion.search": "of a streamed text completion too",
    "CompletionUsage.kl": "nats that a tilt moved the answer from the frozen model",
    "ChatCompletionTokenLogprob.value": "of an aligned model: the token's share of the value functions,",
    "ChatCompletionTokenLogprob.log_ratio": "and by how much the tilt raised its log-probability",
    "Logprobs.values": "the same of text completions,",
    "Logprobs.log_ratios": "too",
    "ResponseUsage.base_tokens": "the same of a response,",
    "ResponseUsage.value_tokens": "and",
    "ResponseUsage.rounds": "too,",
    "ResponseUsage.kl": "and this",
    "ChatCompletion.metadata": "of a stored completion: in OpenAI's answers, and not in the client's type",
    "FineTuningJob.iro": "whether the gain is proven, measures out of the frozen range, place in queue, time run",
    "ReinforcementMethod.iro": "the alignment job's own options",
    "ReinforcementMethod.response_format": "OpenAI documents it; the client's type has not got it",
    "Metrics.*": "of a checkpoint: the metrics of reinforcement, where the client's type has those of supervised jobs",
    "GraderRunResponse.iro": "the grader's error in words",
    "PerTestingCriteriaResult.errored": "items that the criterion could not grade, and",
    "PerTestingCriteriaResult.mean_score": "the mean score of the others",
    "PerModelUsage.model_name": "run_model_name by its alias, which the client keeps twice",
    "PerModelUsage.cost": "of a judge whose price the server was given",
    "Result.error": "of an eval's criterion: why it gave no score",
    "Result.sub_scores": "what the graders of a multi grader gave",
    "SyncPage.*": "OpenAI's lists have them too, the client's pages do not:",
    "SyncCursorPage.*": "object, first_id, last_id, has_more",
    "SyncConversationCursorPage.*": "the same",
}
# Values that OpenAI documents or sends, and that the client's Literals lack, by field.
VALUES = {
    ("status", "paused"): "of a job",
    ("error", None): "of an eval's run or sample without one",
    ("role", "user"): "of a stored completion's message, which the client takes for an assistant's",
    ("finish_reason", None): "of a streamed text completion's chunk before its last",
}


def strictly(answer: Any) -> Any:
    """``answer``, which is checked. The client itself parses without checking."""
    try:
        checked = type(answer).model_validate(answer.to_dict(), strict=True)
    except ValidationError as error:
        wrong = [each for each in error.errors() if (each["loc"][-1], each["input"]) not in VALUES]
        assert not wrong, f"{type(answer).__name__}: {wrong}"
        checked = answer
    unknown = {name for name in extras(checked) if not {name, f"{name.split('.')[0]}.*"} & EXTENSIONS.keys()}
    assert not unknown, f"{type(answer).__name__} does not know {sorted(unknown)}"
    return answer


def extras(value: Any) -> Iterator[str]:
    """``Type.field`` for each field, at any depth, that its type has not got."""
    if isinstance(value, BaseModel):
        name = type(value).__name__.split("[")[0]
        yield from (f"{name}.{field}" for field in value.model_extra or {})
        for field in type(value).model_fields:
            yield from extras(getattr(value, field))
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from extras(part)


def envelope_of(answer: Any) -> dict[str, Any]:
    """The error that ``answer`` brings, in OpenAI's envelope: a message, and no field but OpenAI's four."""
    body = answer.json()
    assert body.keys() == {"error"} and body["error"].keys() == {"message", "type", "param", "code"}, body
    error = body["error"]
    assert isinstance(error["message"], str) and error["message"] and isinstance(error["type"], str), body
    assert all(error[name] is None or isinstance(error[name], str) for name in ("param", "code")), body
    return error
