"""Tables of the documents from results of ``bench.tasks``, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.bench_tasks.temperatures import chosen
from benchmarks.tables import interval_text, table
from iro_server import JsonObject


def rewards(content: JsonObject) -> str:
    """Every method on every task: reward with its interval, the unseen judge, costs and the look of the text."""
    of_text = ["perplexity", "distinct-2", "KL (nats)", "tokens of an answer", "share that ends"]
    head = ["task", "method", "rows", "reward", "judge", *of_text, "base tokens"]
    lines = []
    for cell in content["intervals"]:
        name = (cell["task"], cell["method"], cell["rows"])
        of_seeds = [row for row in content["rows"] if (row["task"], row["method"], row["rows"]) == name]
        kl = mean_of(of_seeds, "kl")
        lines.append(
            [
                *map(str, name),
                interval_text(cell["reward"]),
                f"{cell['judge']['mean']:.2f}",
                f"{mean_of(of_seeds, 'perplexity'):.1f}",
                f"{mean_of(of_seeds, 'distinct_2'):.2f}",
                "" if kl is None else f"{kl:.1f}",
                f"{mean_of(of_seeds, 'length'):.1f}",
                f"{mean_of(of_seeds, 'finished'):.2f}",
                f"{mean_of(of_seeds, 'base_tokens'):.0f}",
            ]
        )
    return table(head, lines)


TEXT_QUALITIES = {"perplexity": ".1f", "distinct_2": ".2g"}


def text_changes(content: JsonObject) -> str:
    """How far perplexity and distinct-2 of ours are from those of the frozen model's one row, in percent: means over
    the seeds of each seed's own ratio."""
    ours = {(row["task"], row["rows"], row["seed"]): row for row in content["rows"] if row["method"] == "iro"}
    frozen = {(row["task"], row["seed"]): row for row in content["rows"] if row["method"] == "base"}
    settings = [(name, count) for name in TEXT_QUALITIES for count in sorted({count for _, count, _ in ours})]
    lines = []
    for task in dict.fromkeys(task for task, _, _ in ours):
        cells = []
        for name, count in settings:
            of_setting = [row for (of_task, rows, _), row in ours.items() if (of_task, rows) == (task, count)]
            percent = 100 * fmean(row[name] / frozen[task, row["seed"]][name] - 1 for row in of_setting)
            cells.append(f"{percent:+{TEXT_QUALITIES[name]}} %" if percent else "equal")
        lines.append([task, *cells])
    return table(["task", *(f"{name.replace('_', '-')}, rows: {count}" for name, count in settings)], lines)


FEWEST, MORE, MOST = slice(1), slice(1, None), slice(-1, None)  # of the numbers of rows that a method was run with
SHORT = (
    ("base", FEWEST, "frozen model"),
    ("tempered", FEWEST, "the same at its best temperature"),
    ("best_of_n", MOST, "best by the grader"),
    ("tempered", MOST, "the same at its best temperature"),
    ("static_bias", FEWEST, "static bias"),
    ("static_bias_refitted", FEWEST, "static bias, fitted again"),
    ("iro", FEWEST, "Iro"),
    ("iro", MORE, "Iro, picked by value"),
    ("iro_best_of_n", MOST, "Iro, picked by the grader"),
)


def short(content: JsonObject) -> str:
    """Rewards of the main methods, a column a task with its number of seeds; empty where one was not run."""
    cells = {(cell["task"], cell["method"], cell["rows"]): cell["reward"] for cell in content["intervals"]}
    tasks = list(dict.fromkeys(task for task, _, _ in cells))
    lines = []
    for method, shown, label in SHORT:
        for count in sorted({count for _, name, count in cells if name == method})[shown]:
            rewards = [cells.get((task, method, count)) for task in tasks]
            lines.append([label, str(count), *("" if reward is None else interval_text(reward) for reward in rewards)])
    return table(["method", "rows", *(f"{task} ({seeds_text(content, task)})" for task in tasks)], lines)


def seeds_text(content: JsonObject, task: str) -> str:
    """How many seeds the task's rows of the main methods are from: "1 seed", or "2 to 5 seeds" where methods differ."""
    shown = {method for method, _, _ in SHORT}
    by_method: dict[str, set[int]] = {}
    for row in content["rows"]:
        if row["task"] == task and row["method"] in shown:
            by_method.setdefault(row["method"], set()).add(row["seed"])
    fewest, most = (extreme(map(len, by_method.values())) for extreme in (min, max))
    return number_of_seeds(most) if fewest == most else f"{fewest} to {number_of_seeds(most)}"


def budgets(content: JsonObject) -> str:
    """What an answer takes by each method, and what came before it: means over a task's seeds, and over the tasks that
    the method was run on, whose number it says where these are not all."""
    head = ["method", "rows", "base tokens", "seconds", "reward calls", "training: base tokens", "its reward calls"]
    num_tasks = len({row["task"] for row in content["rows"]})
    lines = []
    for method, count in sorted({(row["method"], row["rows"]) for row in content["rows"]}):
        rows = [row for row in content["rows"] if (row["method"], row["rows"]) == (method, count)]
        timed = [row for row in rows if row["seconds"] is not None]
        seconds = [row | {"answer_seconds": row["seconds"] / len(row["rewards"])} for row in timed]
        decoding = [
            f"{mean_over_tasks(rows, 'base_tokens'):.0f}",
            f"{mean_over_tasks(seconds, 'answer_seconds'):.2f}" if seconds else "",
            f"{mean_over_tasks(rows, 'reward_calls'):.1f}",
        ]
        of_method = len({row["task"] for row in rows})
        label = method if of_method == num_tasks else f"{method} ({of_method} of {num_tasks} tasks)"
        lines.append([label, str(count), *decoding, *training_cost(content, method, rows)])
    return table(head, lines)


COSTS = ("base_tokens", "reward_calls")


def training_cost(content: JsonObject, method: str, rows: Sequence[JsonObject]) -> list[str]:
    """Base tokens and reward calls before the method decodes, means over the pieces of its ``rows``: of its alignment
    job or of training its adapters, and of choosing its setting; empty where there is none, or none recorded."""
    adapters = adapter_costs(content, method)
    tuning = [row for row in content.get("tuning", ()) if row["method"] == method]
    before = [*(adapters or job_costs(content, method)), *tuning]
    pieces = dict.fromkeys((row["task"], row["seed"]) for row in rows)
    costs = [{"task": task} | total_cost(before, task, seed) for task, seed in pieces]
    return [f"{mean_over_tasks(costs, name):.0f}" if before else "" for name in COSTS]


def adapter_costs(content: JsonObject, method: str) -> list[JsonObject]:
    """Of a method's adapters. Those of DPO at several rates learn from the same rollouts, which count once a piece."""
    adapters = [row for row in content["training"] if row.get("method") == method]
    if method != "dpo":
        return adapters
    return list({(row["task"], row["seed"]): row for row in adapters}.values())


def total_cost(before: Sequence[JsonObject], task: str, seed: int) -> JsonObject:
    of_piece = [row for row in before if (row["task"], row["seed"]) == (task, seed)]
    return {name: sum(row[name] for row in of_piece) for name in COSTS}


WITHOUT_JOB = ("base", "best_of_n", "tempered")
STATIC_BIASES = ("static_bias", "static_bias_refitted")


def job_costs(content: JsonObject, method: str) -> list[JsonObject]:
    """Of each alignment job what it took for the method: for a static bias the ``first_bias`` alone, which runs of
    earlier versions did not record."""
    jobs = [row for row in content["training"] if "method" not in row and method not in WITHOUT_JOB]
    if method not in STATIC_BIASES:
        return jobs
    return [row | row["first_bias"] for row in jobs] if all("first_bias" in row for row in jobs) else []


def reward_by_drift(content: JsonObject) -> str:
    """Of methods of one row: the gain over the frozen model on the seeds that both have, the nats that it took, and the
    gain a nat."""
    lines = []
    for cell in content["comparisons"]:
        name = (cell["task"], cell["method"], cell["rows"])
        rows = [row for row in content["rows"] if (row["task"], row["method"], row["rows"]) == name]
        kl = mean_of(rows, "kl")
        if cell["over"] == "base" and kl is not None:
            a_nat = f"{cell['reward']['mean'] / kl if kl else 0.0:.3f}"
            gain = interval_text(cell["reward"], "+")
            lines.append([cell["task"], cell["method"], str(cell["seeds"]), gain, f"{kl:.1f}", a_nat])
    return table(["task", "method", "seeds", "gain over the frozen model", "KL (nats)", "gain a nat"], lines)


def by_strength(content: JsonObject) -> str:
    """Of one row of the methods whose tilt was measured at several strengths: the reward, and the nats from the frozen
    model, at each of them and at its own; means over the seeds that were measured so."""
    tilts = [row for row in content["tilts"] if row["tilted"]]
    strengths = sorted({row["strength"] for row in tilts})
    lines = []
    for task, method in dict.fromkeys((row["task"], row["method"]) for row in tilts):
        scaled, own = (
            [row for row in content[part] if (row["task"], row["method"]) == (task, method)]
            for part in ("tilts", "rows")
        )
        seeds = {row["seed"] for row in scaled}
        points = [[row for row in scaled if row["strength"] == strength] for strength in strengths]
        fewest = min(row["rows"] for row in own)
        points.append([row for row in own if row["rows"] == fewest and row["seed"] in seeds])
        cells = [f"{mean_of(rows, 'reward'):.2f} at {mean_of(rows, 'kl'):.1f}" for rows in points]
        lines.append([f"{task} ({number_of_seeds(len(seeds))})", method, *cells])
    return table(["task", "method", *(f"{strength:g} of its strength" for strength in strengths), "its own"], lines)


def number_of_seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def by_iteration(content: JsonObject) -> str:
    """Judge against reward of the aligned model of each iteration, means over seeds, and the paired difference from the
    first; * marks the one that most jobs took."""
    formats = {"judge": ".2f", "perplexity": ".1f", "distinct_2": ".2f", "length": ".0f"}
    gains = {(cell["task"], cell["rows"], cell["iteration"]): cell["reward"] for cell in content["iteration_gains"]}
    by_setting: dict[tuple[str, int, int], list[JsonObject]] = {}
    for row in content["iterations"]:
        by_setting.setdefault((row["task"], row["rows"], row["iteration"]), []).append(row)
    lines = []
    for setting, rows in sorted(by_setting.items()):
        task, count, iteration = setting
        chosen = "*" if 2 * sum(row["chosen"] for row in rows) > len(rows) else ""
        gain = interval_text(gains[setting], "+") if setting in gains else ""
        means = [f"{mean_of(rows, name):{form}}" for name, form in formats.items()]
        name = f"{task}, {count} rows, iteration {iteration}{chosen}"
        lines.append([name, f"{mean_of(rows, 'reward'):.2f}", gain, *means])
    head = ["task", "reward", "less the first iteration", *(name.replace("_", "-") for name in formats)]
    return table(head, lines)


def strengths(content: JsonObject) -> str:
    """The strengths that validation prompts chose among."""
    lines = [
        [
            *(str(row[name]) for name in ("task", "method", "seed")),
            ", ".join(f"{trial['strength']:g}: {trial['reward']:.2f}" for trial in row["tried"]),
            f"{row['strength']:g}",
        ]
        for row in content["tuning"]
        if "strength" in row
    ]
    return table(["task", "method", "seed", "validation reward by strength", "chosen"], lines)


def temperatures(content: JsonObject) -> str:
    """Temperatures of the rivals that validation prompts preferred for so many rows, one for each seed, among those
    whose text kept to the limits of a job's tilts; and repetition penalties, where these were tried."""
    taken: dict[tuple[str, str], list[list[str]]] = {}
    for tuning in [row for row in content["tuning"] if "strength" not in row]:
        of_seed = [setting_text(chosen(tuning, count)) for count in COUNTED]
        taken.setdefault((tuning["task"], tuning["method"]), []).append(of_seed)
    lines = [[*name, *map(", ".join, zip(*of_seeds, strict=True))] for name, of_seeds in taken.items()]
    return table(["task", "method", *COUNTED.values()], lines)


def setting_text(setting: JsonObject) -> str:
    temperature, penalty = f"{1 / (1 + setting['sharpness']):.2f}", setting.get("penalty")
    details = [f"rate {setting['rate']:g}"] if "rate" in setting else []
    details += [] if penalty is None else [f"penalty {penalty:g}"]
    return f"{temperature} ({', '.join(details)})" if details else temperature


COUNTED = {1: "one sample", 4: "best of four", 16: "best of sixteen"}


def jobs(content: JsonObject) -> str:
    """What the alignment jobs say of themselves: a number, or a way of serving, for each seed."""
    lines = []
    for task in dict.fromkeys(job["task"] for job in content["jobs"]):
        of_task = [job for job in content["jobs"] if job["task"] == task]
        served = [
            f"{job['served']}, {job['served_rows']}" if job["improved"] else "the frozen model" for job in of_task
        ]
        gains = [f"{job['gain']:.2f} ± {job['gain_error']:.2f}" for job in of_task]
        correlations = [f"{job['correlation']:.2f}" for job in of_task]
        lines.append([task, *map("; ".join, (gains, correlations, served))])
    return table(["task", "gain on prompts that chose nothing", "correlation of values", "served (rows)"], lines)


def gains(content: JsonObject) -> str:
    """Paired differences of the aligned model: from the frozen one, from rivals of as many rows, and of more rows."""
    cells = [cell for cell in content["comparisons"] if cell["method"] == "iro"]
    of_more_rows = {(cell["over"], cell["over_rows"]) for cell in cells if cell["over_rows"] > cell["rows"]}
    lines: dict[tuple[str, int], dict[str, str]] = {}
    for cell in cells:
        line = lines.setdefault((cell["task"], cell["rows"]), {})
        difference = interval_text(cell["reward"], "+") + stars(cell)
        if cell["over_rows"] == cell["rows"] or cell["over"] == "base":
            line[f"less {cell['over']}"] = difference
        if (cell["over"], cell["over_rows"]) in of_more_rows:
            line[f"less {cell['over']} of {cell['over_rows']}"] = difference
    rivals = sorted({rival for line in lines.values() for rival in line})
    rows = [[f"{task}, {count}", *(line.get(rival, "") for rival in rivals)] for (task, count), line in lines.items()]
    return table(["task, rows", *rivals], rows)


def stars(cell: JsonObject) -> str:
    """Of a paired difference: by its p, which speaks of these jobs alone, and none where its interval holds 0."""
    if cell["reward"]["low"] <= 0 <= cell["reward"]["high"]:
        return ""
    return "***" if cell["p"] < 0.001 else "**" if cell["p"] < 0.01 else "*" if cell["p"] < 0.05 else ""


def sample_gains(content: JsonObject) -> str:
    """Paired differences of whole tilted samples, picked by value or by the grader, from rivals of as many rows."""
    lines = [
        [cell["task"], PICKS[cell["method"]], str(cell["rows"]), *difference(cell)]
        for cell in content["comparisons"]
        if cell["method"] in PICKS and cell["over"] != "base" and cell["rows"] == cell["over_rows"]
    ]
    return table(["task", "picked by", "rows", *DIFFERENCE], lines)


DIFFERENCE = ("less (rows)", "reward", "p")
PICKS = {"iro_samples": "values", "iro_best_of_n": "the grader"}


def difference(cell: JsonObject) -> list[str]:
    p = "< 0.001" if cell["p"] < 0.001 else f"{cell['p']:.3f}"
    return [f"{cell['over']} ({cell['over_rows']})", interval_text(cell["reward"], "+"), p]


def mean_of(rows: Sequence[JsonObject], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return sum(values) / len(values) if values else None


def mean_over_tasks(rows: Sequence[JsonObject], name: str) -> float:
    """The mean over tasks of each task's mean over its rows."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    return fmean(fmean(row[name] for row in rows if row["task"] == task) for task in tasks)
