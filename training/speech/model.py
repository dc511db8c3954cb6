"""θ, ψ and φ: a shared encoder, a head that predicts its future (CPC), and a head that transcribes (CTC)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from training.speech.features import MELS
from training.speech.text import BLANK

SUBSAMPLING = 4  # frames per vector


class BiLSTM(nn.Module):
    """Two strided convolutions, then a bidirectional LSTM: frames [B, T, 40] to vectors [B, ⌈T/4⌉, width].

    The way back runs over each sequence turned around within its length, as packed sequences would have it: those, and
    GRUs, have no fused operator on a CPU.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv1d(MELS, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.ahead, self.back = (
            nn.ModuleList(nn.LSTM(width, width // 2, batch_first=True) for _ in range(layers)) for _ in range(2)
        )

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``lengths`` [B]: frames that are not padding. Gives vectors, 0 in the padding, and their lengths."""
        halves = self.first(frames.transpose(1, 2)).relu()
        halves = halves * _within(-(-lengths // 2), halves.shape[2])[:, None]
        vectors = self.second(halves).relu().transpose(1, 2)
        lengths = -(-lengths // SUBSAMPLING)
        real, places = _within(lengths, vectors.shape[1]), torch.arange(vectors.shape[1], device=lengths.device)
        turned = torch.where(real, lengths[:, None] - 1 - places, places)[:, :, None]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            from_end = back(vectors.gather(1, turned.expand_as(vectors)))[0]
            vectors = torch.cat([ahead(vectors)[0], from_end.gather(1, turned.expand_as(from_end))], dim=2)
        return vectors * real[:, :, None], lengths


def _within(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """[B, size]: whether a place is before its row's length."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


class Conformer(nn.Module):
    """transformers' Parakeet encoder: a Conformer with relative positions behind strided convolutions."""

    def __init__(self, width: int, layers: int, heads: int = 8) -> None:
        super().__init__()
        from transformers import ParakeetEncoder, ParakeetEncoderConfig

        self.width = width
        self.encoder = ParakeetEncoder(
            ParakeetEncoderConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                subsampling_factor=SUBSAMPLING,
                num_mel_bins=MELS,
                layerdrop=0.0,
            )
        )

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `BiLSTM.forward`."""
        output = self.encoder(input_features=frames, attention_mask=_within(lengths, frames.shape[1]))
        return output.last_hidden_state, -(-lengths // SUBSAMPLING)


ENCODERS: dict[str, Callable[[int, int], BiLSTM | Conformer]] = {"bilstm": BiLSTM, "conformer": Conformer}


class Recogniser(nn.Module):
    """BL-JUST's parameters: ``encoder`` is θ, ``cpc`` is ψ, ``ctc`` is φ."""

    def __init__(self, encoder: str, width: int, layers: int, tokens: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.encoder = ENCODERS[encoder](width, layers)
        self.cpc = nn.Linear(width, width)
        self.ctc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, tokens))
        self.temperature = temperature

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of tokens [B, T', V] and their lengths [B], of frames [B, T, 40]."""
        vectors, lengths = self.encoder(frames, lengths)
        return self.ctc(vectors).log_softmax(dim=-1), lengths

    def supervised_loss(
        self, frames: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_lengths: torch.Tensor
    ) -> torch.Tensor:
        """CTC, per token. A text longer than its recording's vectors contributes 0."""
        log_probs, lengths = self(frames, lengths)
        return nn.functional.ctc_loss(
            log_probs.transpose(0, 1), targets, lengths, target_lengths, blank=BLANK, zero_infinity=True
        )

    def unsupervised_loss(self, context: torch.Tensor, future: torch.Tensor) -> torch.Tensor:
        """Contrastive predictive coding: ``context`` [B, T, 40] predicts the vectors of ``future`` [B, F, 40], which
        follows it, against all other vectors of the batch. Each window is encoded separately."""
        past, coming = self._encode(context)[:, -1], self._encode(future)
        chain = [past]
        for _ in range(coming.shape[1]):
            chain.append(self.cpc(chain[-1]))
        return info_nce(torch.stack(chain[1:], dim=1).flatten(0, 1), coming.flatten(0, 1), self.temperature)

    def _encode(self, windows: torch.Tensor) -> torch.Tensor:
        count, frames, _ = windows.shape
        vectors: torch.Tensor = self.encoder(windows, torch.full((count,), frames, device=windows.device))[0]
        return vectors


def info_nce(predictions: torch.Tensor, targets: torch.Tensor, temperature: float) -> torch.Tensor:
    """-log softmax of the cosine of each prediction [N, D] with its own target, among all N (arXiv:1807.03748)."""
    cosines = normalize(predictions, dim=-1) @ normalize(targets, dim=-1).T
    return cross_entropy(cosines / temperature, torch.arange(len(targets), device=targets.device))
