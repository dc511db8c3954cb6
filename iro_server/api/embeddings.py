"""POST /v1/embeddings: texts as vectors, by the server's embedding model."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Request
from pydantic import Field

from iro_server import JsonObject
from iro_server.api.closed_model import ClosedModel
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import APIError, bad_request
from iro_server.concurrency.disconnect import unless_gone
from iro_server.graders import local_models

router = APIRouter(tags=["embeddings"])
MAX_INPUTS = 2048  # OpenAI's
BYTES_PER_TOKEN = 100  # of a text, at most: longer than the words of a vocabulary
Text = Annotated[str, Field(min_length=1)]
TokenIds = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]


class EmbeddingRequest(ClosedModel):
    """``input``: a text, several, or token ids of the embedding model's own tokenizer, special tokens included."""

    model: str
    input: (
        Text
        | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
        | TokenIds
        | Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None

    def inputs(self) -> list[str] | list[list[int]]:
        several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return list(self.input) if several else [self.input]  # type: ignore[arg-type,list-item,return-value]


@router.post("/embeddings")
async def create(body: EmbeddingRequest, request: Request, context: Ctx) -> JsonObject:
    """Embed each input: the mean of the model's last hidden states, at unit length."""
    directory = _directory(body.model, context)
    project = context.caller.project
    ids = await context.embedding.run(project, _token_ids, body, directory, context.settings.embedding_tokens)
    tokens = sum(map(len, ids))
    if allowance := getattr(request.state, "allowance", None):
        request.state.rates.spend(allowance, tokens, request.state.headers)
    async with context.deadlines.until(asyncio.get_running_loop().time() + context.settings.request_timeout):
        vectors = await unless_gone(request.receive, _embed(context, directory, ids))
    shown = [_base64(vector) for vector in vectors] if body.encoding_format == "base64" else vectors.tolist()
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(shown)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": body.model, "usage": usage}


def _directory(name: str, context: Context) -> Path:
    """The embedding model's, where ``name`` names it. 404 otherwise."""
    model = context.settings.served_embedding_model
    if model is None or not local_models.is_model(model[1]):
        message = "This server has no embedding model: set IRO_EMBEDDING_MODEL to its folder."
        raise APIError(404, message, param="model", code="model_not_found")
    if name != model[0]:
        message = f"The model '{name}' gives no embeddings here; '{model[0]}' does."
        raise APIError(404, message, param="model", code="model_not_found")
    return model[1]


def _token_ids(body: EmbeddingRequest, directory: Path, most: int) -> list[list[int]]:
    """Of each input. 400 for one that the model does not take, where they are too many in all, and for other dimensions
    than the model has."""
    if body.dimensions not in (None, size := local_models.embedding_size(directory)):
        message = f"Invalid 'dimensions': {body.model} gives {size} dimensions and was not trained to be cut to fewer."
        raise bad_request(message, "dimensions", "unsupported_parameter")
    inputs, longest = body.inputs(), local_models.max_tokens(directory)
    if isinstance(inputs[0], str):
        batches = _tokenised(inputs, directory, longest)  # type: ignore[arg-type]
    else:
        _check_ids(inputs, body.model, local_models.vocabulary_size(directory))  # type: ignore[arg-type]
        batches = iter([inputs])  # type: ignore[list-item]
    ids: list[list[int]] = []
    total = 0
    for batch in batches:
        for number, tokens in enumerate(batch, len(ids)):
            if len(tokens) > longest:
                raise _too_long(number, f"{len(tokens)}", longest)
        ids += batch
        total += sum(map(len, batch))
        if total > most:  # the rest is not tokenised
            message = f"Invalid 'input': over the limit of {most} tokens in all (IRO_EMBEDDING_TOKENS)."
            raise bad_request(message, "input", "too_many_tokens")
    return ids


def _tokenised(texts: list[str], directory: Path, longest: int) -> Iterator[list[list[int]]]:
    """The token ids of a batch of texts at a time. 400, before any is tokenised, for a text of more bytes than
    ``longest`` tokens have."""
    for number, text in enumerate(texts):
        if len(text) > longest * BYTES_PER_TOKEN or len(text.encode(errors="replace")) > longest * BYTES_PER_TOKEN:
            raise _too_long(number, f"over {BYTES_PER_TOKEN} bytes for each of them", longest)
    for start in range(0, len(texts), local_models.BATCH):
        yield local_models.token_ids(directory, texts[start : start + local_models.BATCH])


def _check_ids(inputs: list[list[int]], model: str, size: int) -> None:
    """400 for a token id that the vocabulary, of ``size`` ids, does not have."""
    if unknown := next((token for tokens in inputs for token in tokens if token >= size), None):
        message = f"Invalid 'input': token {unknown}; {model} has ids up to {size - 1}. Send texts: other models'"
        raise bad_request(f"{message} token ids mean nothing to it.", "input")


def _too_long(number: int, length: str, longest: int) -> APIError:
    message = f"This model's maximum context length is {longest} tokens, and input {number} has {length}."
    return bad_request(message, "input", "context_length_exceeded")


async def _embed(context: Context, directory: Path, ids: Sequence[list[int]]) -> np.ndarray:
    """[N, D], a batch at a time: between batches other projects have their turn."""
    order = np.argsort([len(tokens) for tokens in ids], kind="stable")  # batches of like length waste less
    vectors: list[np.ndarray] = []
    for start in range(0, len(ids), local_models.BATCH):
        batch = [ids[i] for i in order[start : start + local_models.BATCH]]
        vectors.append(await context.embedding.run(context.caller.project, local_models.embed_tokens, directory, batch))
    return np.concatenate(vectors)[np.argsort(order)]


def _base64(vector: np.ndarray) -> str:
    """Of its float32 values, little-endian, as OpenAI's clients ask for and read them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
