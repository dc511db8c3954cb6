"""A fault run's table and figure, from its saved results: ``python -m benchmarks.faults_report runs/faults``."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from benchmarks.faults_ledger import Phase
from iro_server import JsonObject


def print_table(summary: JsonObject) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    total = summary["total"]
    table = Table("phase", "kills", "acknowledged", "jobs", *Phase.FAULTS, title=f"{total['kills']} kills")
    for row in summary["phases"]:
        counts = [str(len(row[fault])) for fault in Phase.FAULTS]
        items = "\n".join(f"{count} {kind}" for kind, count in row["acknowledged"].items())
        table.add_row(row["phase"], str(row["kills"]), row["skipped"] or items, str(row["jobs"]), *counts)
    counts = [str(total[fault]) for fault in Phase.FAULTS]
    table.add_row("all", str(total["kills"]), str(total["acknowledged"]), str(total["jobs"]), *counts)
    console.print(table)
    for row in summary["phases"]:
        for fault in Phase.FAULTS:
            for description in row[fault]:
                console.print(f"{row['phase']}: {fault}: {description}", highlight=False, markup=False)


def draw(summary: JsonObject, path: Path) -> None:
    """How many kills struck what, at which moment."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kills = [kill for row in summary["phases"] for kill in row["kills_by_moment"]]
    by_moment: Counter[str] = Counter()
    for kill in kills:
        by_moment[kill["moment"]] += kill["count"]
    moments = [moment for moment, _ in reversed(by_moment.most_common())]
    figure, axes = plt.subplots(figsize=(7, 4.2))
    offsets: Counter[str] = Counter()
    for target in sorted({kill["target"] for kill in kills}):
        counts = {moment: 0 for moment in moments}
        for kill in kills:
            counts[kill["moment"]] += kill["count"] * (kill["target"] == target)
        axes.barh(moments, list(counts.values()), left=[offsets[moment] for moment in moments], label=target)
        offsets.update(counts)
    axes.set_xlabel("kills")
    total = summary["total"]
    fault_counts = ", ".join(f"{total[fault]} {fault}" for fault in Phase.FAULTS)
    axes.set_title(
        f"{total['kills']} kills, {total['acknowledged']} acknowledged items, {total['jobs']} jobs:\n{fault_counts}"
    )
    axes.legend(title="struck")
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the --out of benchmarks.faults")
    folder = parser.parse_args().folder
    results = folder / "results.json"
    if not results.is_file():
        parser.error(f"there is no {results}: benchmarks.faults --out {folder} writes it")
    summary = json.loads(results.read_text())
    draw(summary, folder / "faults.png")
    print_table(summary)


if __name__ == "__main__":
    main()
