"""Refuses prompts that are much too long for a model, without tokenising all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from iro_server.api.errors import bad_request

CHARACTERS_PER_TOKEN = 8  # of a prompt that may fit: shorter ones are not looked at here
PIECE = 2**16  # characters that are tokenised at a time
MARGIN = 2  # a text in pieces has more tokens than the whole, and a chat template may leave text out


def check_length(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, param: str) -> None:
    """400 for texts of over ``MARGIN`` times ``max_length`` tokens, once as many are counted: to tokenise all of a
    body of megabytes takes a thread many seconds."""
    if sum(map(len, texts)) <= CHARACTERS_PER_TOKEN * max_length:
        return
    count = 0
    for piece in _pieces(texts):
        count += len(tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"])
        if count > MARGIN * max_length:
            message = f"This model's maximum context length is {max_length} tokens, and '{param}' takes over {count}."
            raise bad_request(f"{message} Please reduce its length.", param, "context_length_exceeded")


def _pieces(texts: Sequence[str]) -> Iterator[str]:
    for text in texts:
        for start in range(0, len(text), PIECE):
            # JSON may spell lone surrogates, which no tokenizer takes.
            yield text[start : start + PIECE].encode(errors="replace").decode()
