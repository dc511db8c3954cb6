"""A server of a frozen model, with aligned models whose values and tilts a test makes up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import openai
import torch

from iro_server import JsonObject
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.settings import Settings
from iro_server.store.database import find, open_database
from iro_server.store.tables import Checkpoint, Job, Model, new_id
from tests.iro_server.api.serving import aligned, serving
from value_heads import FeatureSpec, LinearHead, ValueStack, save_bundle
from value_heads.prompt_features import FEATURES
from value_heads.tilt import Tilt, zero_tilt


@contextmanager
def serving_tilted(
    settings: Settings, engine: EmbeddedEngine, stacks: dict[str, ValueStack] | None = None
) -> Iterator[openai.OpenAI]:
    """The model ``tilted`` towards the prompt's words, and those of ``stacks``, at one row with their tilts."""
    width = engine.info.hidden_size
    spec = FeatureSpec(summed=(0,), position=False)
    nothing = LinearHead(spec, torch.zeros(spec.width(width)), 0.0)
    for name, stack in {"tilted": ValueStack([nothing], [1.0], words_tilt(engine)), **(stacks or {})}.items():
        add_model(settings, engine, name, stack)
    with serving(settings, engine) as client:
        yield client


def add_model(settings: Settings, engine: EmbeddedEngine, name: str, stack: ValueStack) -> None:
    aligned(settings, name, iterations=1)
    with open_database(settings).begin() as session:
        model = find(session, Model, name)
        model.search = {"search": {"strength": 1.0} if stack.tilt else {}}
        path = Path(model.path)
    save_bundle(path, stack, model_hash=engine.info.model_hash, template_hash=engine.info.template_hash)


def add_checkpoint(settings: Settings, name: str, step: int, metrics: JsonObject) -> str:
    """A checkpoint with the values and the tilt of the model ``name``, whose job searched without a tilt; its name."""
    with open_database(settings).begin() as session:
        model = find(session, Model, name)
        assert model is not None
        job = find(session, Job, model.job_id)
        assert job is not None
        job.search = {}
        checkpoint = Checkpoint(id=new_id("ftckpt-"), job_id=job.id, step=step, path=model.path, metrics=metrics)
        checkpoint.model_name = f"{name}:ckpt-step-{step}"
        session.add(checkpoint)
        return checkpoint.model_name


def words_tilt(engine: EmbeddedEngine) -> Tilt:
    """Towards the prompt's words."""
    vocabulary, width = engine.frozen.head_weight.shape
    gates = torch.zeros(len(FEATURES), width + 1)
    gates[FEATURES.index("prompt"), -1] = 3.0
    return replace(zero_tilt(vocabulary, width, (), engine.info.eos_ids), gates=gates)
