"""vLLM's requests and answers: ``POST /v1/completions``, and ``POST /inference/v1/generate`` for sessions that read
numbers of the model's state.

The first reports log-probabilities of the likeliest tokens alone, the second of chosen ones: the reserved tokens, whose
logits report the state (``value_heads.reserved_tokens``). They are never drawn, and count for nothing in the
log-probabilities of others.
"""

from __future__ import annotations

import json
import math

from iro_server import JsonObject
from iro_server.engines.base import Alternatives, Sampling
from iro_server.engines.remote import Row
from iro_server.engines.replica import ReplicaFailure
from value_heads.reserved_tokens import ReservedTokens

MOST_NUMBERS = 18  # of a token; vLLM takes 20 tokens by default, and reports one fewer
BARRED = -100.0  # as ``logit_bias``
NOT_REPORTED = -9999.0  # what vLLM writes where it has no log-probability
# Regular expressions: one space at most, and only around commas and colons. Of ``whitespace_pattern`` the llguidance of
# vLLM 0.32 takes any number.
SEPARATORS: JsonObject = {"whitespace_flexible": False, "item_separator": " ?, ?", "key_separator": " ?: ?"}
OF_COMPLETIONS = ("model", "prompt", "cache_salt", "return_token_ids", "logprobs", "return_tokens_as_token_ids")


def request(model: str, prompt: list[int], count: int, length: int, sampling: Sampling, seed: int | None) -> JsonObject:
    """Sets every sampling field: no default of the endpoint or of the model's generation config applies.

    Without a seed vLLM draws all rows of a batch at once; with seeds one by one.
    """
    body: JsonObject = {
        "model": model,
        "prompt": prompt,
        "n": count,
        "max_tokens": length,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,  # what ends a row is in stop_token_ids
        "stop_token_ids": list(sampling.stop_ids),
        "return_token_ids": True,
        "logprobs": sampling.alternatives,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }
    if seed is not None:
        body["seed"] = seed
    if sampling.alternatives:
        body["return_tokens_as_token_ids"] = True  # the likeliest tokens are named so: "token_id:17"
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if sampling.schema is not None:
        body["structured_outputs"] = {"json": _with_whitespace(json.loads(sampling.schema))}
    return body | ({"cache_salt": sampling.salt} if sampling.salt else {})


def _with_whitespace(schema: JsonObject | bool) -> JsonObject | bool:
    """The schema with the white space that vLLM's guidance backend, which is llguidance too, may write."""
    return schema | {"x-guidance": SEPARATORS} if isinstance(schema, dict) else schema


def rows_of(
    payload: JsonObject, count: int, length: int, sampling: Sampling, vocabulary: float = math.inf
) -> list[Row]:
    """ValueError, or another of a wrong shape's errors, unless these are ``count`` rows of tokens below ``vocabulary``
    that each end where they should."""
    return [
        _row(choice, *tokens_of(choice, length, sampling, vocabulary), sampling)
        for choice in choices_of(payload, count)
    ]


def choices_of(payload: JsonObject, count: int) -> list[JsonObject]:
    choices = sorted(payload["choices"], key=lambda choice: choice["index"])
    if [choice["index"] for choice in choices] != list(range(count)):
        raise ValueError(f"{len(choices)} rows instead of {count}")
    return choices


def tokens_of(choice: JsonObject, length: int, sampling: Sampling, vocabulary: float) -> tuple[list[int], bool]:
    """The tokens of a row, and whether it drew a stop id."""
    tokens = _checked_tokens(choice, vocabulary)
    stopped = tokens[-1] in sampling.stop_ids
    if len(tokens) > length or (len(tokens) < length and not stopped):
        raise ValueError(f"{len(tokens)} tokens instead of {length}, finish_reason {choice['finish_reason']}")
    return tokens, stopped


def _checked_tokens(choice: JsonObject, vocabulary: float) -> list[int]:
    tokens: list[int] = choice["token_ids"]
    if not tokens or not all(type(token) is int and 0 <= token < vocabulary for token in tokens):
        raise ValueError(f"token_ids are {str(tokens)[:80]}")
    return tokens


def streamed_row(event: JsonObject, sampling: Sampling, vocabulary: float) -> Row | None:
    """What an event of a streamed row adds to it; None: nothing. Errors as of ``rows_of``."""
    if not event["choices"] or not event["choices"][0]["token_ids"]:
        return None
    (choice,) = event["choices"]
    tokens = _checked_tokens(choice, vocabulary)
    return _row(choice, tokens, tokens[-1] in sampling.stop_ids, sampling)


def _row(choice: JsonObject, tokens: list[int], stopped: bool, sampling: Sampling) -> Row:
    logprobs = choice["logprobs"]["token_logprobs"]
    if len(logprobs) != len(tokens):
        raise ValueError(f"{len(logprobs)} log-probabilities of {len(tokens)} tokens")
    top_logprobs = choice["logprobs"]["top_logprobs"] if sampling.alternatives else []  # else named by their texts
    alternatives = [_alternatives(top, sampling.alternatives) for top in top_logprobs]
    return Row(tokens, [_finite(logprob) for logprob in logprobs], stopped, alternatives)


def _finite(logprob: float | str) -> float:
    number = float(logprob)
    if not math.isfinite(number):
        raise ValueError(f"a log-probability is {number}")
    return number


def _alternatives(top: JsonObject, count: int) -> Alternatives:
    """vLLM's own list, in which the token drawn may be one more."""
    named = [(int(name.removeprefix("token_id:")), _finite(logprob)) for name, logprob in top.items()]
    if min(logprob for _, logprob in named) <= NOT_REPORTED:
        message = "a batch with a search that reads the model's state reports no likeliest tokens: asked for again"
        raise ReplicaFailure(message, counts=False)
    return sorted(named, key=lambda alternative: -alternative[1])[:count]


def generate_request(body: JsonObject, reserved: ReservedTokens) -> JsonObject:
    """The request for completions ``body``, of one prompt, with the log-probabilities of the reserved tokens."""
    asked = [*reserved.all, reserved.reference]  # vLLM 0.32 reports the token drawn and all of these but the last
    barred = {str(token): BARRED for token in reserved.all}
    sampling = {name: value for name, value in body.items() if name not in OF_COMPLETIONS} | {
        "logit_bias": body.get("logit_bias", {}) | barred,
        "logprobs": len(asked),
        "logprob_token_ids": asked,
        "detokenize": False,
    }
    salt = {"cache_salt": body["cache_salt"]} if "cache_salt" in body else {}
    return {"model": body["model"], "token_ids": body["prompt"], "sampling_params": sampling} | salt


def generated_rows(
    payload: JsonObject, count: int, length: int, sampling: Sampling, vocabulary: int, reserved: ReservedTokens
) -> list[Row]:
    """As ``rows_of``, with the numbers of the model's state that the reserved tokens report."""
    return [
        _generated_row(choice, *tokens_of(choice, length, sampling, vocabulary), reserved)
        for choice in choices_of(payload, count)
    ]


def _generated_row(choice: JsonObject, tokens: list[int], stopped: bool, reserved: ReservedTokens) -> Row:
    positions = choice["logprobs"]["content"]
    if [position["token_id"] for position in positions] != tokens:
        raise ValueError(f"{len(positions)} log-probabilities are not those of {len(tokens)} tokens")
    if drawn := set(tokens) & set(reserved.all):
        raise ValueError(f"the reserved tokens {sorted(drawn)} are drawn")
    logprobs, head_values = [], []
    for position in positions:
        by_token = {entry["token_id"]: _finite(entry["logprob"]) for entry in position["top_logprobs"]}
        of_reserved = [by_token[token] for token in reserved.all]
        if min(of_reserved) <= NOT_REPORTED:
            raise ValueError(f"the log-probabilities of the reserved tokens are {of_reserved}")
        logprobs.append(reserved.without_reserved(_finite(position["logprob"]), of_reserved))
        head_values.append(reserved.numbers(of_reserved))
    return Row(tokens, logprobs, stopped, [], head_values)
