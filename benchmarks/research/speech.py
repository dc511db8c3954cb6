"""The claims of BL-JUST (arXiv:2412.08548), from the results of ``bilevel.bl_just``. Differences are paired by seed."""

from __future__ import annotations

from benchmarks.research.claims import Claim, against, cell_text, estimate, negative
from benchmarks.tables import table
from iro_server import JsonObject
from training.speech.schedule import NAMES

PAIRS = (  # (lower, higher) error rate
    ("bl_just", "supervised"),
    ("bl_just", "pretrain"),
    ("bl_just", "pseudo"),
    ("bl_just", "fixed"),
    ("bl_just", "rising"),
    ("bl_just", "fixed_explore"),
    ("bl_just", "gradient_norm"),
    ("fixed_explore", "fixed"),
    ("rising", "fixed"),
    ("fixed", "supervised"),
    ("pretrain", "supervised"),
    ("pseudo", "supervised"),
)


def bl_just(result: JsonObject) -> JsonObject:
    """Claims, and by method the rates that were chosen, whether one is at its grid's edge, and the error rates."""
    results = result["results"]
    rows: list[Claim] = []
    for lower, higher in PAIRS:
        if lower in results and higher in results:
            pairs = zip(results[lower], results[higher], strict=True)
            gap = estimate([a["test"]["cer"] - b["test"]["cer"] for a, b in pairs])
            rows.append(negative(f"test CER: {NAMES[lower]} below {NAMES[higher]}", [gap], against(gap, 0)))
    errors = {
        method: {
            f"{part}_{rate}": estimate([training[part][rate] for training in trainings])
            for part in ("dev", "test")
            for rate in ("cer", "wer")
        }
        for method, trainings in results.items()
    }
    return {"claims": rows, "chosen": result["chosen"], "tuning": result["tuning"], "errors": errors}


def errors(content: JsonObject) -> str:
    """By method: the chosen rates, marked where the search ended at an edge, and the error rates."""
    rows = []
    for method, cells in content["errors"].items():
        tuning = content["tuning"].get(method, {})
        chosen = (
            f"{name} {value:g}" + (" (edge)" if tuning.get(name, {}).get("at_edge") else "")
            for name, value in content["chosen"][method].items()
        )
        texts = [cell_text(cells[name]) for name in ("dev_cer", "test_cer", "test_wer")]
        rows.append([NAMES[method], ", ".join(chosen), *texts])
    return table(["", "chosen on dev", "dev CER", "test CER", "test WER"], rows)
