"""A training: passes over the recordings, each with its loss, in an order that makes the method."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from training.bilevel.bl_just.features import FRAMES_PER_SECOND, Features, spec_augment
from training.bilevel.bl_just.manifest import ManifestError
from training.bilevel.bl_just.model import Recogniser
from training.bilevel.bl_just.penalty import joint_gradients, rising
from training.bilevel.bl_just.text import Tokenizer, greedy
from training.run import derive_seed, rng_of

Kind = Literal["explore", "joint", "supervised", "fine-tune"]


class Settings(NamedTuple):
    """Passes, steps and rates; `Config` says what each is."""

    epochs: int
    exploration_passes: int
    finetune_passes: int
    batch: int
    exploration_lr: float
    lr: float
    finetune_lr: float
    gamma_step: float
    gamma_cap: float
    fixed_gamma: float
    context: float
    future: float
    workers: int = 0


class Pass(NamedTuple):
    """``labelled`` and ``unlabelled``: how many passes over each came before; they decide the order of the data."""

    kind: Kind
    gamma: float
    labelled: int
    unlabelled: int


def plan(method: str, settings: Settings) -> list[Pass]:
    """The passes of a method; all but "fixed" hear the unlabelled recordings equally often, if they do at all, and all
    take the same supervised steps."""
    explore: list[tuple[Kind, float]] = [("explore", 0.0)]
    kinds: list[tuple[Kind, float]]
    match method:
        case "bl_just":
            kinds = []
            for k in range(settings.epochs):
                kinds += explore * settings.exploration_passes
                kinds.append(("joint", rising(settings.gamma_step, settings.gamma_cap, k)))
        case "pretrain":
            passes = settings.epochs * (settings.exploration_passes + 1)
            kinds = explore * passes + [("supervised", 0.0)] * settings.epochs
        case "fixed":
            kinds = [("joint", settings.fixed_gamma)] * settings.epochs
        case _:
            kinds = [("supervised", 0.0)] * settings.epochs
    kinds += [("fine-tune", 0.0)] * settings.finetune_passes
    labelled = unlabelled = 0
    passes_: list[Pass] = []
    for kind, gamma in kinds:
        passes_.append(Pass(kind, gamma, labelled, unlabelled))
        labelled += kind != "explore"
        unlabelled += kind in ("explore", "joint")
    return passes_


@dataclass
class Data:
    """What a training learns from: ``texts`` are the tokens of the first ``len(texts)`` of ``features``."""

    features: Features
    texts: list[list[int]]


class Training:
    """The model, its optimizers and the next pass. All randomness comes from the seed and the pass, so that a resumed
    training goes on to the same bits."""

    def __init__(
        self, model: Recogniser, data: Data, passes: list[Pass], settings: Settings, seed: int, device: str = "cpu"
    ) -> None:
        self.model, self.data, self.passes, self.settings = model.to(device), data, passes, settings
        self.seed, self.device, self.done = seed, torch.device(device), 0
        self._window = tuple(round(each * FRAMES_PER_SECOND) for each in (settings.context, settings.future))
        self.theta, self.phi, self.psi = (list(part.parameters()) for part in (model.encoder, model.ctc, model.cpc))
        adam = torch.optim.AdamW
        self.optimizers = {
            "explore": adam([*self.theta, *self.psi], settings.exploration_lr),
            "theta": adam(self.theta, settings.lr),
            "phi": adam(self.phi, settings.lr),
            "psi": adam(self.psi, settings.lr),
            "fine-tune": adam([*self.theta, *self.phi], settings.finetune_lr),
        }
        needed = sum(self._window)
        self.heard = [i for i, one in enumerate(data.features.recordings) if one.seconds * FRAMES_PER_SECOND >= needed]
        if not self.heard:
            raise ManifestError(f"no recording is {needed / FRAMES_PER_SECOND:g} s long: lower context or future")
        self.steps = -(-len(self.heard) // settings.batch)

    def run_pass(self) -> dict[str, float]:
        """The next pass; gives its mean losses."""
        step = self.passes[self.done]
        torch.manual_seed(derive_seed(self.seed, 3, self.done))  # for dropout
        losses = {"explore": self._explore, "joint": self._joint}.get(step.kind, self._supervised)(step)
        self.done += 1
        return losses

    def seconds_per_step(self) -> dict[Kind, float]:
        """What a pass of each kind takes, from its second step now. It changes the model: build another to train."""
        first, taken = Pass("joint", 0.0, 0, 0), []
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
        heard, written = taken
        return {"explore": heard, "joint": heard + written, "supervised": written, "fine-tune": written}

    def state(self) -> dict[str, Any]:
        """All that `load` needs, on the CPU, so that it can go on elsewhere."""
        optimizers = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        state = {"done": self.done, "model": dict(self.model.state_dict()), "optimizers": optimizers}
        on_cpu: dict[str, Any] = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf, state)
        return on_cpu

    def load(self, state: dict[str, Any]) -> None:
        self.done = state["done"]
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
        """As many steps as a joint pass has."""
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
            upper, lower = self.model.supervised_loss(*batch), self.model.unsupervised_loss(*windows)
            joint_gradients(upper, lower, step.gamma, phi=self.phi, theta=self.theta, psi=self.psi)
            for name in ("theta", "phi", "psi"):
                self.optimizers[name].step()
            upper_total, lower_total = upper_total + upper.item(), lower_total + lower.item()
        return {"supervised": upper_total / self.steps, "unsupervised": lower_total / self.steps}

    def _descend(self, loss: torch.Tensor, *names: str) -> None:
        self.model.zero_grad()
        loss.backward()
        for name in names:
            self.optimizers[name].step()

    def _windows(self, step: Pass) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(context, future) [B, frames, 40] of every recording that is long enough, at a random place."""
        rng = rng_of(self.seed, 1, step.unlabelled)
        context, future = self._window
        order = rng.permutation(self.heard)
        for indices in self._loader(np.array_split(order, self.steps)):
            parts = []
            for frames in indices:
                start = int(rng.integers(max(1, len(frames) - context - future + 1)))
                parts.append(_cut(frames, start, context + future))
            windows = torch.stack(parts).to(self.device)
            yield windows[:, :context], windows[:, context:]

    def _utterances(self, step: Pass) -> Iterator[tuple[torch.Tensor, ...]]:
        """Labelled batches, with SpecAugment, as often through them as ``steps`` asks for."""
        rng = rng_of(self.seed, 2, step.labelled)
        count, batch = len(self.data.texts), min(self.settings.batch, len(self.data.texts))
        rounds = -(-self.steps * batch // count)
        order = np.concatenate([rng.permutation(count) for _ in range(rounds)])[: self.steps * batch]
        parts = order.reshape(self.steps, batch)
        for indices, frames in zip(parts, self._loader(list(parts)), strict=True):
            masked = [spec_augment(one, rng) for one in frames]
            texts = [torch.tensor(self.data.texts[i]) for i in indices]
            frame_counts, token_counts = (torch.tensor([len(one) for one in each]) for each in (masked, texts))
            padded = (pad_sequence(masked, batch_first=True), frame_counts, torch.cat(texts), token_counts)
            yield tuple(part.to(self.device) for part in padded)

    def _loader(self, batches: list[np.ndarray]) -> Any:
        dataset: Dataset[torch.Tensor] = self.data.features
        lists = [batch.tolist() for batch in batches]
        return DataLoader(dataset, batch_sampler=lists, num_workers=self.settings.workers, collate_fn=list)


def _cut(frames: torch.Tensor, start: int, length: int) -> torch.Tensor:
    """``length`` frames from ``start``; a recording a frame short of its header's duration is filled with its mean."""
    window = frames[start : start + length]
    return torch.nn.functional.pad(window, (0, 0, 0, length - len(window)))


def transcribe(model: Recogniser, features: Features, tokenizer: Tokenizer, batch: int = 32) -> list[str]:
    """What the model hears in each recording, by greedy decoding."""
    device, said = model.cpc.weight.device, []
    model.eval()
    with torch.inference_mode():
        for start in range(0, len(features), batch):
            frames = [features[i] for i in range(start, min(start + batch, len(features)))]
            lengths = torch.tensor([len(one) for one in frames], device=device)
            found = greedy(*model(pad_sequence(frames, batch_first=True).to(device), lengths))
            said += [" ".join(tokenizer.decode(tokens).split()) for tokens in found]
    model.train()
    return said


def error_rates(said: list[str], meant: list[str]) -> dict[str, float]:
    """Word and character error rates, by jiwer: 1 is as many errors as there are words."""
    import jiwer

    return {"wer": float(jiwer.wer(meant, said)), "cer": float(jiwer.cer(meant, said))}
