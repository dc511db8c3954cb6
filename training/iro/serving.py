"""The rows that an aligned model is served with.

Validation prompts decide whether one row of its tilt, two, a quarter of the search's rows, or all of them are served,
and whether values steer the search, by its chunks or by longer ones, or pick among whole samples. Reconstruction: the
paper searches alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iro_server.alignment.definition import MAX_SUCCESSORS
from iro_server.decoding.base import SearchParams
from training.iro.config import AlignConfig
from training.iro.data import Prompt
from training.iro.diagnostics import mean_and_error, ranking_mean, reward_statistics
from training.iro.distance import kl_per_token
from training.iro.over_optimization import MEASURES, departures, perplexity, rises, writes_alike
from training.iro.validation import Validated, Validation
from training.iro.values import Stack
from training.json_values import JsonObject
from training.run import Run

STRENGTHS = (0.25, 0.5, 0.75)  # of a tilt, that are measured beside its own: weaker ones are nearer to the frozen model
LONGER = 4  # chunks of the search that one longer chunk has: values of few tokens rank some tasks' prefixes badly


def serve(
    run: Run, validation: Validation, step: int, prompts: Sequence[Prompt], stack: Stack, frozen: Sequence[JsonObject]
) -> Served:
    """What the model of an iteration is served with. ``frozen``: the frozen model's rows on ``prompts``."""
    config, prefix = validation.config, "" if step == 1 else f"{step}-"
    by_name = searches(config, stack.tilt is not None)
    validated = {
        name: validation.validate(f"{prefix}serve-{step_name(config, params)}", prompts, params, stack, name)
        for name, params in by_name.items()
    }
    sharpened = stack.tilt is not None and stack.tilt.sharpness > 0
    outside = {name: departures(frozen, valid.rows, sharpened) for name, valid in validated.items()}
    ways = {name: valid.rows for name, valid in validated.items()}
    chosen = best_way(frozen, ways, outside, {name: params.rows for name, params in by_name.items()})
    prices = [price(name, by_name[name], valid, outside[name]) for name, valid in validated.items()]
    strengths = by_strength(validation, prefix, prompts, stack, frozen, sharpened) if stack.tilt else []
    strengths += [each for each in prices if each["search"]["strength"] and each["rows"] == 1]

    def emit_reports() -> None:
        run.emit("message", price_report(prices, chosen), {"step": step, "prices": prices, "chosen": chosen})
        if strengths:
            run.emit("message", strength_report(strengths), {"step": step, "strengths": strengths})

    run.step(f"{prefix}serve-report", emit_reports)
    return Served(by_name[chosen], validated[chosen], prices, strengths, outside[chosen])


def by_strength(
    validation: Validation,
    prefix: str,
    prompts: Sequence[Prompt],
    stack: Stack,
    frozen: Sequence[JsonObject],
    sharpened: bool,
) -> list[JsonObject]:
    """The ``price`` of one row at each of ``STRENGTHS``."""
    priced = []
    for strength in STRENGTHS:
        name, params = f"tilt at strength {strength:g}", SearchParams(strength=strength)
        valid = validation.validate(f"{prefix}strength-{strength:g}", prompts, params, stack, name)
        priced.append(price(name, params, valid, departures(frozen, valid.rows, sharpened)))
    return priced


def step_name(config: AlignConfig, params: SearchParams) -> str:
    """Of the step of a run that validates it."""
    if params.rows == 1 or params.chunk_length == config.chunk_length:
        return f"{params.rows}"
    return f"samples-{params.rows}" if params.chunk_length is None else f"longer-{params.rows}"


@dataclass(frozen=True)
class Served:
    """``prices``: of each way to serve the model, its rows, and reward, perplexity, KL and departures from the frozen
    model's text on validation prompts. One that departs by more than its length is served only where no other is above
    the frozen model. ``strengths``: the same of one row at rising strengths of the tilt, the last of them its own.
    ``outside``: the departures of the chosen way."""

    params: SearchParams
    validated: Validated
    prices: list[JsonObject]
    strengths: list[JsonObject]
    outside: list[JsonObject] | None


def price(name: str, params: SearchParams, valid: Validated, outside: list[JsonObject] | None) -> JsonObject:
    single = params.rows == 1  # the nats of a pick are unknown
    return {
        "name": name,
        "rows": params.rows,
        **reward_statistics([row["value_pick"] for row in valid.rows]),
        "perplexity": perplexity(valid.rows),
        "kl": mean_and_error([row["kl"] for row in valid.rows])[0] if single else math.nan,
        "kl_per_token": kl_per_token(valid.rows) if single else math.nan,
        "over_optimization": outside,
        "search": params.model_dump(exclude_none=True) | {"chunk_length": params.chunk_length},
    }


def price_report(prices: Sequence[JsonObject], chosen: str) -> str:
    parts = [f"{each['name']} ({each['rows']} rows) {price_text(each)}" for each in prices]
    return f"Validation reward by rows: {'; '.join(parts)}. Chosen: {chosen}"


def strength_report(strengths: Sequence[JsonObject]) -> str:
    parts = [f"{each['search']['strength']:g}: {price_text(each)}" for each in strengths]
    return f"Validation reward of one row by search.strength: {'; '.join(parts)}"


def price_text(price: JsonObject) -> str:
    half_width = price.get("half_width", math.nan)  # of an earlier version's price, or of a single prompt
    interval = "" if math.isnan(half_width) else f" ± {half_width:.3f}"
    return f"{price['reward']:.3f}{interval}{kl_text(price)}{departures_text(price)}"


def kl_text(price: JsonObject) -> str:
    return "" if math.isnan(price["kl"]) else f", {price['kl']:.3g} nats from the frozen model"


def departures_text(price: JsonObject) -> str:
    names = [MEASURES[part["measure"]] for part in price["over_optimization"] or []]
    return f" (unlike the frozen model's text by {', '.join(names)})" if names else ""


def searches(config: AlignConfig, tilted: bool) -> dict[str, SearchParams]:
    """By name, what a model may be served with: of equal rows first what leaves most to the model, which is served
    where validation tells no difference. Values of several rows pick among whole samples, or steer a search by
    ``LONGER`` chunks or by its own. No more rows than ``max_rows``: a way with a tilt that takes more is left out."""
    full, longer = config.search if tilted else within_max_rows(config), LONGER * config.chunk_length
    samples = {"beam_width": 1, "num_successors": min(full.rows, MAX_SUCCESSORS), "chunk_length": None}
    by_name = {"samples": full.model_copy(update=samples)}
    if longer < config.horizon:
        by_name["search by longer chunks"] = full.model_copy(update={"chunk_length": longer})
    by_name["search"] = full
    if not tilted:
        return by_name
    quarter = {"beam_width": 1, "num_successors": min(max(2, full.rows // 4), MAX_SUCCESSORS), "strength": 1.0}
    two = {**samples, "num_successors": 2, "strength": 1.0}
    tilted_ways = {
        "tilt": SearchParams(strength=1.0),
        **({"tilt and two samples": full.model_copy(update=two)} if full.rows // 4 > 2 else {}),
        **{
            f"tilt and {name}, a quarter of the rows": params.model_copy(update=quarter)
            for name, params in by_name.items()
            if full.rows > quarter["num_successors"]
        },
        **{
            f"tilt and {name}": params.model_copy(update={"strength": 1.0})
            for name, params in by_name.items()
            if full.rows > 1
        },
    }
    return {name: params for name, params in tilted_ways.items() if params.rows <= config.max_rows}


def within_max_rows(config: AlignConfig) -> SearchParams:
    """The config's search, of at most ``max_rows`` rows: with fewer beams where two continuations of each are too many,
    and then with fewer continuations."""
    full, most = config.search, config.max_rows
    if full.rows <= most:
        return full
    width = min(full.beam_width, max(1, most // min(full.num_successors, 2)))
    return full.model_copy(update={"beam_width": width, "num_successors": min(full.num_successors, most // width)})


def best_way(
    frozen: Sequence[JsonObject],
    ways: dict[str, list[JsonObject]],
    outside: Mapping[str, list[JsonObject] | None],
    rows: dict[str, int],
) -> str:
    """The cheapest of the ways to serve a model that are above the frozen model and write like it, else of all.

    A grader may want other lengths: only perplexity and distinct-2 count as writing.
    ``frozen``, ``ways``: rows of ``Validation`` on the same prompts. ``outside``: each way's ``departures``. ``rows``:
    that each way decodes at once.
    """
    usual = [name for name, valid in ways.items() if writes_alike(outside[name]) and rises(frozen, valid)]
    return cheapest({name: [row["value_pick"] for row in ways[name]] for name in usual or ways}, rows)


def cheapest(rewards: dict[str, list[float]], rows: dict[str, int]) -> str:
    """The fewest rows whose reward the best does not exceed by twice the error of the paired difference."""
    best = max(rewards, key=lambda name: ranking_mean(rewards[name]))

    def is_as_good(name: str) -> bool:
        gap, error = mean_and_error([b - a for a, b in zip(rewards[name], rewards[best], strict=True)])
        return name == best or gap <= 2 * error

    return min(filter(is_as_good, rewards), key=lambda name: (rows[name], -ranking_mean(rewards[name])))
