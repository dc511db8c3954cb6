"""Text to the tokens of CTC and back: characters, or SentencePiece. Token 0 is CTC's blank."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, Protocol

import torch

BLANK = 0


class Tokenizer(Protocol):
    """``state`` rebuilds it (`restore`); ``size`` counts the blank."""

    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...
    def state(self) -> dict[str, Any]: ...


class Characters:
    """The characters of the training texts. Others are left out of a text: they cannot be recognised."""

    def __init__(self, alphabet: str) -> None:
        self.alphabet, self.size = alphabet, len(alphabet) + 1
        self._index = {character: i for i, character in enumerate(alphabet, 1)}

    def encode(self, text: str) -> list[int]:
        return [self._index[character] for character in text if character in self._index]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.alphabet[token - 1] for token in tokens)

    def state(self) -> dict[str, Any]:
        return {"alphabet": self.alphabet}


class Pieces:
    """A SentencePiece unigram model, whose piece i is token i + 1."""

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = model
        self._processor = SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size() + 1

    def encode(self, text: str) -> list[int]:
        return [piece + 1 for piece in self._processor.encode(text)]

    def decode(self, tokens: list[int]) -> str:
        return str(self._processor.decode([token - 1 for token in tokens]))

    def state(self) -> dict[str, Any]:
        return {"pieces": self.model}


def fit(texts: Iterable[str], pieces: int) -> Tokenizer:
    """Characters if ``pieces`` is 0, else a unigram model of that size. ValueError if the texts are too few for it."""
    texts = list(texts)
    if pieces == 0:
        return Characters("".join(sorted(set().union(*texts))))
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    options: dict[str, Any] = {"model_type": "unigram", "minloglevel": 2, "num_threads": 1}
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=model, vocab_size=pieces, character_coverage=1.0, **options
        )
    except RuntimeError as error:
        raise ValueError(f"pieces={pieces} does not suit these texts: {str(error).splitlines()[-1][-160:]}") from None
    return Pieces(model.getvalue())


def restore(state: dict[str, Any]) -> Tokenizer:
    return Pieces(state["pieces"]) if "pieces" in state else Characters(state["alphabet"])


def greedy(log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
    """Best token of each frame, repeats merged, blanks dropped: ``log_probs`` [B, T, V], ``lengths`` [B]."""
    best = log_probs.argmax(dim=-1).cpu()
    found = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length]).tolist()
        found.append([token for token in merged if token != BLANK])
    return found
