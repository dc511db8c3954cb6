"""Text to the tokens of CTC and back: characters, or SentencePiece. Token 0 is CTC's blank."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Protocol, TypedDict

import torch

BLANK = 0


class TokenizerState(TypedDict, total=False):
    """Exactly one of the two: of ``Characters`` or of ``Pieces``."""

    alphabet: str
    pieces: bytes


class Tokenizer(Protocol):
    """``restore`` rebuilds it from ``state``; ``size`` includes the blank."""

    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, tokens: list[int]) -> str: ...
    def state(self) -> TokenizerState: ...


class Characters:
    """The characters of the training texts. ``encode`` drops all others."""

    def __init__(self, alphabet: str) -> None:
        self.alphabet, self.size = alphabet, len(alphabet) + 1
        self._index = {character: i for i, character in enumerate(alphabet, 1)}

    def encode(self, text: str) -> list[int]:
        return [self._index[character] for character in text if character in self._index]

    def decode(self, tokens: list[int]) -> str:
        return "".join(self.alphabet[token - 1] for token in tokens)

    def state(self) -> TokenizerState:
        return {"alphabet": self.alphabet}


class Pieces:
    """A SentencePiece unigram model; piece i is token i + 1."""

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self.model = model
        self._processor = SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size() + 1

    def encode(self, text: str) -> list[int]:
        return [piece + 1 for piece in self._processor.encode(text)]

    def decode(self, tokens: list[int]) -> str:
        return str(self._processor.decode([token - 1 for token in tokens]))

    def state(self) -> TokenizerState:
        return {"pieces": self.model}


def fit(texts: Iterable[str], pieces: int) -> Tokenizer:
    """Characters if ``pieces`` is 0, else a unigram model of that size. Raises ValueError for too few texts."""
    texts = list(texts)
    if pieces == 0:
        return Characters("".join(sorted(set().union(*texts))))
    from sentencepiece import SentencePieceTrainer

    model = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=model,
            vocab_size=pieces,
            character_coverage=1.0,
            model_type="unigram",
            minloglevel=2,
            num_threads=1,
        )
    except RuntimeError as error:
        raise ValueError(f"pieces={pieces} does not suit these texts: {str(error).splitlines()[-1][-160:]}") from None
    return Pieces(model.getvalue())


def restore(state: TokenizerState) -> Tokenizer:
    return Pieces(state["pieces"]) if "pieces" in state else Characters(state["alphabet"])


def greedy(log_probs: torch.Tensor, lengths: torch.Tensor) -> list[list[int]]:
    """The best token of each frame, repeats merged, blanks dropped: ``log_probs`` [B, T, V], ``lengths`` [B]."""
    best = log_probs.argmax(dim=-1).cpu()
    token_lists = []
    for row, length in zip(best, lengths.tolist(), strict=True):
        merged = torch.unique_consecutive(row[:length]).tolist()
        token_lists.append([token for token in merged if token != BLANK])
    return token_lists
