"""How far the answers of a tilt are from the frozen model's, in nats a token.

Perplexity does not show that: at a low temperature a tilt may write what the frozen model hardly would, and still as
likely text as the frozen model's own at temperature 1. Reconstruction: the paper has no such rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.json_values import JsonObject

CODE = "distance"
FAR = 2.0  # nats a token, on a geometric mean 7 times as likely as under the frozen model


def kl_per_token(rows: Sequence[JsonObject]) -> float:
    """Nats; NaN where the engine does not report them. ``rows``: of ``Validation``, of answers of one row."""
    return float(sum(row["kl"] for row in rows) / max(1.0, sum(row["tokens"] for row in rows)))


def far(prices: Sequence[JsonObject]) -> JsonObject | None:
    """The price of one row of a tilt that is ``FAR`` from the frozen model, if it is."""
    return next((price for price in prices if price["kl_per_token"] > FAR), None)


def warning(price: JsonObject, strengths: Sequence[JsonObject]) -> str:
    """What an event says of a price that is ``far``. ``strengths``: prices at rising strengths of the same tilt."""
    near = [each for each in strengths if each["kl_per_token"] <= FAR]
    advice = (
        f"search.strength {near[-1]['search']['strength']:g} of a request gives {near[-1]['reward']:.3g} at "
        f"{near[-1]['kl_per_token']:.1f} nats a token; "
        if near
        else ""
    )
    return (
        f"Distance: an answer of one row is {price['kl']:.0f} nats from the frozen model, {price['kl_per_token']:.1f} "
        "a token. Such text can be incoherent although its perplexity is that of the frozen model's text: read some "
        f"completions. {advice}max_kl limits the distance, as a hyperparameter of a job or in search of a request"
    )
