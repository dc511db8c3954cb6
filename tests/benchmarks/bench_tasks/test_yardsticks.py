"""Answers of the frozen model with an adapter, against transformers' forward pass."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from benchmarks.bench_tasks import yardsticks
from benchmarks.bench_tasks.adapted import Adapted, adapted_engine, frozen_model
from benchmarks.bench_tasks.grpo import SAMPLED, earlier_samples
from benchmarks.bench_tasks.methods import Base
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.temperatures import TiltedSamples, at_setting, chosen
from benchmarks.bench_tasks.yardsticks import LORA, RATES, fit_adapter, tune
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from training.iro.data import Prompt
from training.run import Cancelled

TEXTS = ("The film was", "A river is", "My favourite dish")


@pytest.fixture(scope="module")
def piece() -> Iterator[Piece]:
    sizes: Any = SimpleNamespace(name="texts", max_tokens=8, concurrency=8)
    grader: Any = None
    with EmbeddedEngine(prepare_model()) as engine:
        yield Piece(sizes, sizes, 0, Path(), engine, grader, lambda name, compute: compute())


def prompts(piece: Piece) -> list[Prompt]:
    return [Prompt(i, tuple(piece.engine.tokenizer(text)["input_ids"]), {}) for i, text in enumerate(TEXTS)]


def adapter(folder: Path, size: float) -> Path:
    model = get_peft_model(frozen_model(), LoraConfig(**LORA))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=size)
    model.save_pretrained(folder)
    return folder


@pytest.mark.slow(12)
def test_an_adapter_that_changes_nothing_answers_as_the_frozen_model(piece: Piece, tmp_path: Path) -> None:
    repeating_less = at_setting(piece.no_tilt, 0.5, 2.0)
    with adapted_engine(adapter(tmp_path, 0.0), "float32") as engine:
        adapted = Adapted(piece, engine).answers(prompts(piece), 1, 5)
        at_settings = Adapted(piece, engine, repeating_less).answers(prompts(piece), 1, 5)
    base = Base(piece).answers(prompts(piece), 1, 5)
    expected_at_settings = TiltedSamples(piece, repeating_less).answers(prompts(piece), 1, 5)
    assert [answer.tokens for answer in adapted] == [answer.tokens for answer in base]
    for answer, expected in zip(adapted, base, strict=True):
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-3)
        assert answer.kl == pytest.approx(0, abs=1e-6) and answer.base_tokens == len(answer.tokens)
    assert [answer.tokens for answer in at_settings] == [answer.tokens for answer in expected_at_settings]
    for answer, expected in zip(at_settings, expected_at_settings, strict=True):
        assert answer.kl == pytest.approx(expected.kl, rel=1e-3) and answer.kl > 0.1
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=1e-3)


class Interrupted:
    """A trainer as TRL's: its first training ends after the second checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.model, self.begun = folder, self, list[str | None]()

    def train(self, resume_from_checkpoint: str | None) -> None:
        self.begun.append(resume_from_checkpoint)
        if resume_from_checkpoint is None:
            for step in (4, 8):
                checkpoint = self.folder / f"checkpoint-{step}"
                checkpoint.mkdir(parents=True)
                (checkpoint / SAMPLED).write_text(json.dumps({"tokens": 10 * step, "completions": step}))
            raise Cancelled("stopped")

    def save_pretrained(self, folder: Path) -> None:
        (folder / "adapter_model.safetensors").touch()


def test_a_training_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "grpo"
    trainer = Interrupted(folder)
    assert earlier_samples(folder) == {"tokens": 0, "completions": 0}
    with pytest.raises(Cancelled):
        fit_adapter(trainer, folder)
    assert earlier_samples(folder) == {"tokens": 80, "completions": 8}
    fit_adapter(trainer, folder)
    assert trainer.begun == [None, str(folder / "checkpoint-8")]
    assert [path.name for path in folder.iterdir()] == ["adapter_model.safetensors"]


@torch.no_grad()
@pytest.mark.slow(14)
def test_kl_and_log_probabilities_are_those_of_both_models_at_any_temperature(piece: Piece, tmp_path: Path) -> None:
    folder = adapter(tmp_path, 0.01)
    frozen, tuned = frozen_model(), PeftModel.from_pretrained(frozen_model(), folder)
    prompt = prompts(piece)[0]
    with adapted_engine(folder, "float32") as engine:
        for sharpness in (0.0, 0.5):
            tilt = at_setting(piece.no_tilt, sharpness, 0.0)
            (answer,) = Adapted(piece, engine, tilt).answers([prompt], 1, 5)
            ids = torch.tensor([[*prompt.token_ids, *answer.tokens]])
            expected, adapted = (
                model(ids).logits[0, -len(answer.tokens) - 1 : -1].double().log_softmax(-1) for model in (frozen, tuned)
            )
            drawn = ((1 + sharpness) * adapted).log_softmax(-1)
            assert answer.kl == pytest.approx(float((drawn.exp() * (drawn - expected)).sum()), rel=1e-3)
            assert answer.kl > 0.01
            of_tokens = expected.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0].tolist()
            assert answer.logprobs == pytest.approx(of_tokens, abs=1e-3)


def test_the_best_rate_alone_is_tried_at_lower_temperatures(monkeypatch: pytest.MonkeyPatch) -> None:
    best, tried = RATES[1], list[tuple[float, float]]()

    def settings_at(_: object, __: str, rate: float, levels: Any, least_penalty: float = 0.0) -> list[dict[str, Any]]:
        tried.extend((rate, sharpness) for sharpness in levels)
        reward = 1.0 if rate == best else 0.0
        return [
            {
                "rate": rate,
                "sharpness": sharpness,
                "penalty": least_penalty,
                "rewards": [[reward + sharpness]],
                "usual": sharpness < 2,
                "base_tokens": 10,
            }
            for sharpness in levels
        ]

    monkeypatch.setattr(yardsticks, "settings_at", settings_at)
    sizes: Any = SimpleNamespace(task=SimpleNamespace(name="texts"), seed=0, validation=[0, 1])
    tuning = tune(sizes, "dpo")
    assert tried == [*((rate, 0.0) for rate in RATES), (best, 0.5), (best, 1.0), (best, 2.0)]
    setting = chosen(tuning, rows=1)
    assert (setting["rate"], setting["sharpness"]) == (best, 1.0)
    assert tuning["base_tokens"] == 60 and tuning["reward_calls"] == 6 * 16 * 2
