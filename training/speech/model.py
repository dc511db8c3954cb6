"""θ, ψ and φ: a shared encoder, a head that predicts its future (CPC), and a head that transcribes (CTC)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from training.speech.features import MELS
from training.speech.text import BLANK

SUBSAMPLING = 4  # frames per vector


class BiGRU(nn.Module):
    """Two strided convolutions, then a bidirectional GRU: frames [B, T, 40] to vectors [B, ⌈T/4⌉, width]."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.first = nn.Conv1d(MELS, width, 3, stride=2, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.gru = nn.GRU(width, width // 2, layers, batch_first=True, bidirectional=True)

    def forward(self, frames: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``lengths`` [B]: frames that are not padding. Gives vectors and their lengths."""
        halves = self.first(frames.transpose(1, 2)).relu()
        real = torch.arange(halves.shape[2], device=lengths.device) < -(-lengths // 2)[:, None]
        vectors = self.second(halves * real[:, None]).relu().transpose(1, 2)
        lengths = -(-lengths // SUBSAMPLING)
        packed = pack_padded_sequence(vectors, lengths.cpu(), batch_first=True, enforce_sorted=False)
        vectors, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True)
        return vectors, lengths


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
        """As `BiGRU.forward`."""
        real = torch.arange(frames.shape[1], device=frames.device) < lengths[:, None]
        output = self.encoder(input_features=frames, attention_mask=real)
        return output.last_hidden_state, -(-lengths // SUBSAMPLING)


ENCODERS: dict[str, Callable[[int, int], BiGRU | Conformer]] = {"bigru": BiGRU, "conformer": Conformer}


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
