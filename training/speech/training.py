"""A training: the passes of a method over the recordings, each with its loss."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from training.run import derive_seed, rng_of
from training.speech.features import FRAMES_PER_SECOND, Features, spec_augment
from training.speech.manifest import ManifestError
from training.speech.model import Recogniser
from training.speech.penalty import joint_gradients, twice_differentiable
from training.speech.schedule import Pass, PassKind, TrainingSchedule
from training.speech.text import Tokenizer, greedy

State = dict[str, object]  # of a module or an optimizer


@dataclass
class TrainingData:
    """``texts``: the tokens of the first ``len(texts)`` recordings of ``features``."""

    features: Features
    texts: list[list[int]]


class TrainingState(TypedDict):
    """``done``: finished passes. ``pseudo``: tokens that the model recognised, by recording. All tensors are on the
    CPU."""

    done: int
    pseudo: dict[int, list[int]]
    model: dict[str, torch.Tensor]
    optimizers: dict[str, State]


class Training:
    """The model, its optimizers and the next pass.

    The seed and the number of the pass determine all randomness: a resumed training ends at the same bits.
    """

    def __init__(
        self,
        model: Recogniser,
        data: TrainingData,
        passes: list[Pass],
        schedule: TrainingSchedule,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.model, self.data, self.passes, self.schedule = model.to(device), data, passes, schedule
        self.seed, self.device, self.done = seed, torch.device(device), 0
        self._window = tuple(round(seconds * FRAMES_PER_SECOND) for seconds in (schedule.context, schedule.future))
        self.theta, self.phi, self.psi = (list(part.parameters()) for part in (model.encoder, model.ctc, model.cpc))
        adam = partial(torch.optim.AdamW, weight_decay=schedule.weight_decay)
        self.optimizers = {
            "explore": adam([*self.theta, *self.psi], schedule.exploration_lr),
            "theta": adam(self.theta, schedule.lr),
            "phi": adam(self.phi, schedule.lr),
            "psi": adam(self.psi, schedule.lr),
            "fine-tune": adam([*self.theta, *self.phi], schedule.finetune_lr),
        }
        self.pseudo: dict[int, list[int]] = {}
        needed = sum(self._window)
        self.windowed = [
            i for i, recording in enumerate(data.features.recordings) if recording.seconds * FRAMES_PER_SECOND >= needed
        ]
        if not self.windowed:
            raise ManifestError(f"no recording is {needed / FRAMES_PER_SECOND:g} s long: lower context or future")
        self.steps = -(-len(self.windowed) // schedule.batch)

    def run_pass(self) -> dict[str, float]:
        """Runs the next pass and returns its mean losses."""
        step = self.passes[self.done]
        torch.manual_seed(derive_seed(self.seed, 3, self.done))  # for dropout
        by_kind = {"explore": self._explore, "joint": self._joint, "transcribe": self._transcribe}
        losses = by_kind.get(step.kind, self._supervised)(step)
        self.done += 1
        return losses

    def seconds_per_pass(self) -> dict[PassKind, float]:
        """The duration of a pass of each kind, from its second step. It changes the model: build another to train."""
        first, taken = Pass("joint", 0.0, "value", 0, 0), []
        for batches, loss in (
            (self._windows(first), self.model.unsupervised_loss),
            (self._utterances(first), self.model.supervised_loss),
        ):
            elapsed = 0.0
            for batch in itertools.islice(batches, 2):
                began = time.monotonic()
                loss(*batch).backward()
                elapsed = time.monotonic() - began
            taken.append(elapsed * self.steps)
        unsupervised, supervised = taken
        seconds: dict[PassKind, float] = dict.fromkeys(("supervised", "pseudo", "fine-tune"), supervised)
        return seconds | {"explore": unsupervised, "joint": unsupervised + supervised, "transcribe": supervised / 3}

    def state(self) -> TrainingState:
        """The argument of `load`, on the CPU, so that training can resume on another device."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        model = dict(self.model.state_dict())
        state = {"done": self.done, "pseudo": self.pseudo, "model": model, "optimizers": optimizers}
        on_cpu: TrainingState = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state)
        return on_cpu

    def load(self, state: TrainingState) -> None:
        self.done, self.pseudo = state["done"], state["pseudo"]
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def _explore(self, step: Pass) -> dict[str, float]:
        total = 0.0
        for windows in self._windows(step):
            loss = self.model.unsupervised_loss(*windows)
            self._descend(loss, "explore")
            total += loss.item()
        return {"unsupervised": total / self.steps}

    def _supervised(self, step: Pass) -> dict[str, float]:
        """The number of steps of a joint pass."""
        total = 0.0
        names = ("fine-tune",) if step.kind == "fine-tune" else ("theta", "phi")
        for batch in self._utterances(step):
            loss = self.model.supervised_loss(*batch)
            self._descend(loss, *names)
            total += loss.item()
        return {"supervised": total / self.steps}

    def _joint(self, step: Pass) -> dict[str, float]:
        upper_total = lower_total = 0.0
        for batch, windows in zip(self._utterances(step), self._windows(step), strict=True):
            upper = self.model.supervised_loss(*batch)
            with twice_differentiable() if step.penalty == "norm" else nullcontext():
                lower = self.model.unsupervised_loss(*windows)
                joint_gradients(
                    upper, lower, step.gamma, phi=self.phi, theta=self.theta, psi=self.psi, penalty=step.penalty
                )
            for name in ("theta", "phi", "psi"):
                self.optimizers[name].step()
            upper_total, lower_total = upper_total + upper.item(), lower_total + lower.item()
        return {"supervised": upper_total / self.steps, "unsupervised": lower_total / self.steps}

    def _transcribe(self, step: Pass) -> dict[str, float]:
        """Pseudo-labels: what the model hears in the recordings without a text, of the ``pseudo_share`` of them that it
        is surest of, by the mean over vectors of the greatest log-probability."""
        first, features = len(self.data.texts), self.data.features
        heard = dict(zip(range(first, len(features)), recognise(self.model, features, first), strict=True))
        surest = sorted((place for place in heard if heard[place][0]), key=lambda place: -heard[place][1])
        surest = surest[: round(self.schedule.pseudo_share * len(heard))]
        self.pseudo = {place: heard[place][0] for place in surest}
        return {"pseudo_labels": float(len(surest))}

    def _descend(self, loss: torch.Tensor, *names: str) -> None:
        self.model.zero_grad()
        loss.backward()
        for name in names:
            self.optimizers[name].step()

    def _windows(self, step: Pass) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(context, future) [B, frames, 40] of every recording that is long enough, at a random position."""
        rng = rng_of(self.seed, 1, step.unlabelled)
        context, future = self._window
        order = rng.permutation(self.windowed)
        for indices in self._loader(np.array_split(order, self.steps)):
            parts = []
            for frames in indices:
                start = int(rng.integers(max(1, len(frames) - context - future + 1)))
                parts.append(_cut(frames, start, context + future))
            windows = torch.stack(parts).to(self.device)
            yield windows[:, :context], windows[:, context:]

    def _utterances(self, step: Pass) -> Iterator[tuple[torch.Tensor, ...]]:
        """``steps`` labelled batches with SpecAugment; in a "pseudo" pass half of each is pseudo-labelled."""
        rng = rng_of(self.seed, 2, step.labelled)
        tokens = dict(enumerate(self.data.texts)) | self.pseudo
        labelled, batch = np.arange(len(self.data.texts)), self.schedule.batch
        if step.kind == "pseudo" and self.pseudo:
            pseudo = np.array(sorted(self.pseudo))
            parts = np.hstack([self._orders(labelled, batch - batch // 2, rng), self._orders(pseudo, batch // 2, rng)])
        else:
            parts = self._orders(labelled, batch, rng)
        for indices, frames in zip(parts, self._loader(list(parts)), strict=True):
            masked = [spec_augment(recording, rng) for recording in frames]
            texts = [torch.tensor(tokens[int(i)]) for i in indices]
            frame_counts, token_counts = (torch.tensor([len(row) for row in rows]) for rows in (masked, texts))
            padded = (pad_sequence(masked, batch_first=True), frame_counts, torch.cat(texts), token_counts)
            yield tuple(part.to(self.device) for part in padded)

    def _orders(self, places: np.ndarray, batch: int, rng: np.random.Generator) -> np.ndarray:
        """[steps, batch] of ``places``, in one random order after another; a batch is no larger than ``places``."""
        batch = min(batch, len(places))
        rounds = -(-self.steps * batch // len(places))
        order = np.concatenate([rng.permutation(places) for _ in range(rounds)])[: self.steps * batch]
        return order.reshape(self.steps, batch)

    def _loader(self, batches: list[np.ndarray]) -> DataLoader[torch.Tensor]:
        dataset: Dataset[torch.Tensor] = self.data.features
        lists = [batch.tolist() for batch in batches]
        return DataLoader(dataset, batch_sampler=lists, num_workers=self.schedule.workers, collate_fn=list)


def _cut(frames: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """``length`` frames from ``start``; a recording shorter than its header's duration is padded with its mean, 0."""
    window = frames[start : start + length]
    return torch.nn.functional.pad(window, (0, 0, 0, length - len(window)))


def transcribe(model: Recogniser, features: Features, tokenizer: Tokenizer) -> list[str]:
    """The transcript of each recording, by greedy decoding."""
    return [" ".join(tokenizer.decode(tokens).split()) for tokens, _ in recognise(model, features)]


def recognise(model: Recogniser, features: Features, first: int = 0, batch: int = 32) -> list[tuple[list[int], float]]:
    """The tokens of each recording from number ``first`` on, by greedy decoding, and the mean over its vectors of the
    greatest log-probability."""
    device = model.cpc.weight.device
    recognised: list[tuple[list[int], float]] = []
    model.eval()
    for start in range(first, len(features), batch):
        frames = [features[i] for i in range(start, min(start + batch, len(features)))]
        lengths = torch.tensor([len(recording) for recording in frames], device=device)
        with torch.inference_mode():
            log_probs, counts = model(pad_sequence(frames, batch_first=True).to(device), lengths)
            best = log_probs.max(dim=-1).values
            sure = [float(row[:count].mean()) for row, count in zip(best, counts.tolist(), strict=True)]
        recognised += zip(greedy(log_probs, counts), sure, strict=True)
    model.train()
    return recognised


class ErrorRates(TypedDict):
    """Word and character error rate: 1 is one error per word or character of the text."""

    wer: float
    cer: float


def error_rates(transcripts: list[str], texts: list[str]) -> ErrorRates:
    """By jiwer."""
    import jiwer

    return {"wer": float(jiwer.wer(texts, transcripts)), "cer": float(jiwer.cer(texts, transcripts))}
