"""The demo's results as a table, as texts and as a figure, from what demo.json holds alone."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from iro_server import JsonObject

JUDGES = {"grader": "grader (logit)", "vader": "VADER", "minilm": "MiniLM (logit)"}


def print_results(console: Console, results: JsonObject, num_texts: int = 3) -> None:
    """Mean ± standard error of each method by each judge, then texts of each for the first prompts."""
    heldout = len(results["prompts"])
    table = Table(title=f"{heldout} held-out prompts, mean ± standard error; no job saw VADER or MiniLM")
    table.add_column("")
    for title in ["rows", *JUDGES.values(), "grader, over best of 16"]:
        table.add_column(title, justify="right")
    for method in results["methods"]:
        cells = [_plus_minus(method["scores"][judge]) for judge in JUDGES]
        table.add_row(method["name"], str(method["rows"]), *cells, _plus_minus(method["gain_over_best_of_n"]))
    console.print(table)
    for index, prompt in enumerate(results["prompts"][:num_texts]):
        console.print(Text(f"\n{prompt} …", style="bold"))
        for method in results["methods"]:
            reward = method["scores"]["grader"]["values"][index]
            text = " ".join(method["texts"][index].split())
            console.print(Text.assemble((f"  {method['name']} ({reward:+.2f}) ", "cyan"), text))


def _plus_minus(score: JsonObject) -> str:
    return f"{score['mean']:+.2f} ± {score['se']:.2f}"


def draw(results: JsonObject, path: Path) -> None:
    """One panel a judge: the mean of each method, with its 95 % interval."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    methods = results["methods"]
    figure, panels = plt.subplots(1, len(JUDGES), figsize=(12, 0.45 * len(methods) + 1.6), sharey=True)
    for panel, (judge, title) in zip(panels, JUDGES.items(), strict=True):
        scores = [method["scores"][judge] for method in methods]
        colours = ["tab:blue" if "IRO" in method["name"] else "tab:grey" for method in methods]
        errors = [1.96 * score["se"] for score in scores]
        panel.barh(range(len(methods)), [score["mean"] for score in scores], xerr=errors, color=colours, capsize=3)
        panel.set_title(title)
        panel.axvline(0, color="black", linewidth=0.8)
    panels[0].set_yticks(range(len(methods)), [method["name"] for method in methods])
    panels[0].invert_yaxis()
    figure.suptitle(f"Sentiment of continuations, {len(results['prompts'])} held-out prompts, 95 % intervals")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)
