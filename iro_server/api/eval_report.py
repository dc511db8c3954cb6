"""The page that an eval run's ``report_url`` names: no script, nothing fetched, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from iro_server import JsonObject

STYLE = (
    "body{font:15px system-ui;margin:2rem auto;max-width:70rem;padding:0 1rem}table{border-collapse:collapse;"
    "margin:1rem 0}td,th{border:1px solid #bbb;padding:.3rem .6rem;text-align:left;vertical-align:top}"
    "td.text{white-space:pre-wrap;max-width:34rem}"
)
LONGEST = 2000  # characters of an answer that are shown


def report_page(run: JsonObject, failed: Sequence[JsonObject]) -> str:
    """``run`` and its first items that failed or erred, as the API shows them."""
    counts, title = run["result_counts"], run["name"] or run["id"]
    criteria = [
        (c["testing_criteria"], c["passed"], c["failed"], c["errored"], _number(c["mean_score"]))
        for c in run["per_testing_criteria_results"]
    ]
    usage = [(u["model_name"], u["invocation_count"], u["total_tokens"]) for u in run["per_model_usage"]]
    sections = [
        f"<h1>{escape(title)}</h1><p>{escape(run['status'])} · {escape(run['model'] or 'stored samples')} · "
        f"{counts['passed']} of {counts['total']} items passed, {counts['failed']} failed, {counts['errored']} with an "
        "error</p>",
        _table(("criterion", "passed", "failed", "with an error", "mean score"), criteria),
        _table(("model", "calls", "tokens"), usage),
        "<h2>Failed items</h2>" if failed else "",
        _table(("item", "answer", "criteria"), map(_item_row, failed)) if failed else "",
    ]
    return f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>{''.join(sections)}"


def _item_row(item: JsonObject) -> tuple[object, ...]:
    sample = item["sample"]
    answer = sample["error"]["message"] if sample["error"] else "".join(o["content"] for o in sample["output"])
    results = "\n".join(
        f"{r['name']}: {r.get('error') or _number(r['score'])}" for r in item["results"] if not r["passed"]
    )
    return item["datasource_item_id"], answer[:LONGEST], results


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = ["".join(f"<th>{escape(name)}</th>" for name in head)]
    lines += ["".join(f'<td class="text">{_escaped(cell)}</td>' for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _escaped(cell: object) -> str:
    return escape(str(cell)).encode(errors="replace").decode()


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.3f}"
