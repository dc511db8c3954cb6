"""``iro generate``: one completion of a model in this process, and what its tokens are worth."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table
from rich.text import Text
from transformers.utils.logging import disable_progress_bar

from iro_server import JsonObject
from iro_server.alignment.definition import DEFAULT_OPTIONS
from iro_server.decoding.base import SearchParams, repeatable
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prompts import item_prompt_ids
from value_heads import LoraValues, ValueStack, load_bundle
from value_heads.bundle import read_manifest
from value_heads.compose import compose

MOST_LISTED = 5  # tokens of the most value, and of the least


@dataclass(frozen=True)
class Completion:
    """``pieces``: the text of each token. ``values``: what each adds to the completion's value; ``log_ratios``: by how
    much the tilt raised the logarithm of its probability. None without value functions, or without a tilt."""

    text: str
    pieces: list[str]
    values: list[float] | None = None
    log_ratios: list[float] | None = None


SERVED_NAMES = ("ft:", "ftjob-")


def parse_values(text: str) -> dict[Path, float]:
    """``PATH``, or ``PATH=WEIGHT,PATH=WEIGHT``: the bundles with their weights. ValueError for what is neither, or a
    bundle that stands twice."""
    if text.startswith(SERVED_NAMES):
        raise ValueError(
            f"--values: a folder, such as runs/align/iterations/1; {text} answers through its server's API"
        )
    if Path(text).exists() or "=" not in text:
        return {Path(text): 1.0}
    bundles: dict[Path, float] = {}
    for part in text.split(","):
        path, _, text_of_weight = part.rpartition("=")
        try:
            weight = float(text_of_weight)
        except ValueError:
            raise ValueError(f"--values: {part!r} is not PATH=WEIGHT") from None
        if not path or not math.isfinite(weight):
            raise ValueError(f"--values: {part!r} is not PATH=WEIGHT with a finite weight")
        if Path(path) in bundles:
            raise ValueError(f"--values: {Path(path)} stands twice; give it one weight")
        bundles[Path(path)] = weight
    return bundles


def search_defaults(bundles: Iterable[Path], options: JsonObject) -> JsonObject:
    """What bundles are tried with: tilts at one row where there are any, unless the options ask for a search."""
    search = DEFAULT_OPTIONS.search.model_dump()
    if all(read_manifest(bundle).tilt is None for bundle in bundles) or options["strength"] == 0:
        return search
    wants_search = any(options[name] is not None for name in ("beam_width", "num_successors", "chunk_length"))
    return (search if wants_search else {}) | {"strength": 1.0}


def complete(
    model_dir: Path,
    prompt: str,
    text: bool,
    params: SearchParams,
    sampling: Sampling,
    max_tokens: int,
    bundles: Mapping[Path, float] | None,
) -> Completion:
    """``bundles``: with their weights. ValueError where one does not fit the model or another, or the search."""
    disable_progress_bar()
    item = {"prompt": prompt} if text else {"messages": [{"role": "user", "content": prompt}]}
    with EmbeddedEngine(model_dir) as engine:
        values = load_values(engine, model_dir, bundles or {})
        if values and params.betas:
            values = values.with_betas(params.betas)
        sampling = replace(sampling, stop_ids=engine.info.eos_ids)
        prompt_ids = item_prompt_ids(engine.tokenizer, item)
        best_first = values is not None and sampling.temperature == 0 and params.rows > 1
        if best_first:
            sampling = repeatable(sampling, 1.0, prompt_ids)
        steering = steering_of(values, params)
        attribution = values if isinstance(values, ValueStack) and values.decomposes else None
        scorer = values if params.rows > 1 else None
        search = guided_search(
            engine, prompt_ids, params, sampling, max_tokens, scorer, steering=steering, attribution=attribution
        )
        finals = asyncio.run(search).finals
        final = max(finals, key=lambda final: final.value) if best_first else finals[0]
        return Completion(
            str(engine.tokenizer.decode(final.tokens, skip_special_tokens=True)),
            [str(engine.tokenizer.decode([token])) for token in final.tokens],
            final.token_values or None,
            final.log_ratios or None,
        )


def load_values(
    engine: EmbeddedEngine, model_dir: Path, bundles: Mapping[Path, float]
) -> ValueStack | LoraValues | None:
    """The bundles' weighted sum; None without any."""
    hashes = {"model_hash": engine.info.model_hash, "template_hash": engine.info.template_hash}
    loaded = [load_bundle(bundle, **hashes, backbone_dir=model_dir) for bundle in bundles]
    if not loaded or list(bundles.values()) == [1.0]:
        return loaded[0] if loaded else None
    stacks = [values for values in loaded if isinstance(values, ValueStack)]
    if len(stacks) < len(loaded):
        raise ValueError("LoRA value functions fold with no others: only linear and mlp ones are mixed")
    return compose(stacks, list(bundles.values()))


def steering_of(values: ValueStack | LoraValues | None, params: SearchParams) -> Steering | None:
    """ValueError for a strength without a tilt."""
    if not params.strength:
        return None
    if values is None or values.tilt is None:
        raise ValueError("strength multiplies a tilt, and there is none")
    return Steering(values.tilt, params.strength, params.max_kl)


def explained(completion: Completion) -> Table:
    """The completion coloured by values, and by its tilt, with the tokens that count most."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, numbers in (("value", completion.values), ("tilt", completion.log_ratios)):
        if numbers is not None:
            table.add_row(f"{name} {sum(numbers):+.3f}", coloured(completion.pieces, numbers))
            table.add_row("", extremes(completion.pieces, numbers))
    if completion.values is None and completion.log_ratios is None:
        raise ValueError("LoRA and mlp value functions are no sum over tokens that --explain could colour")
    return table


def coloured(pieces: list[str], numbers: list[float]) -> Text:
    """Green where a token adds to the sum, red where it takes from it, by its share of the largest."""
    largest = max(map(abs, numbers), default=0.0) or 1.0
    text = Text()
    for piece, number in zip(pieces, numbers, strict=True):
        depth = round(abs(number) / largest * 160)
        colour = f"rgb(0,{depth},0)" if number > 0 else f"rgb({depth},0,0)"
        text.append(piece, style=f"white on {colour}")
    return text


def extremes(pieces: list[str], numbers: list[float]) -> str:
    order = sorted(range(len(pieces)), key=lambda place: numbers[place])
    most, least = order[::-1][:MOST_LISTED], order[:MOST_LISTED]
    return "  ".join(f"{pieces[place]!r} {numbers[place]:+.2f}" for place in [*most, *least[::-1]])
