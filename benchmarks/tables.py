"""Tables of the documents, as Markdown. Each function takes the content of a results file."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from iro_server import JsonObject

Content = JsonObject
Row = Sequence[str]
MIB = 2**20
METHODS = {"blockwise 4x4": "blockwise best-of-4x4, newest value functions"}
IRO_PREFIX = "IRO-"


def table(head: Row, rows: Iterable[Row]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def interval_text(cell: dict[str, float], sign: str = "", digits: int = 2) -> str:
    mean, low, high = (f"{cell[name]:{sign}.{digits}f}" for name in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def quality_setup(content: Content) -> str:
    config = content["run"]["config"]
    rows = [
        ["jobs, each with a seed of its own", str(content["seeds"])],
        ["training prompts of an iteration", str(config["train_prompts"])],
        ["held-out prompts of all jobs", str(content["prompts"])],
    ]
    return table(["setting", "value"], rows)


def quality(content: Content) -> str:
    """Every method's reward, its difference from best-of-N, and what no job saw."""
    head = ["method", "pick", "reward", "less best-of-16", "VADER", "MiniLM", "perplexity", "distinct-2"]
    gains = {(row["method"], row["pick"]): interval_text(row, "+") for row in content["gains"]}
    rows = []
    for row in content["methods"]:
        if "perplexity" in row:
            judges = [f"{row[judge]['mean']:.2f}" for judge in ("vader", "minilm")]
            judges += [f"{row['perplexity']:.1f}", f"{row['distinct_2']:.3f}"]
        else:
            judges = [""] * 4
        gain = gains.get((row["method"], row["pick"]), "")
        pick = "" if row["pick"] == "none" else row["pick"]
        rows.append([method_name(row["method"], content), pick, interval_text(row["reward"]), gain, *judges])
    return table(head, rows)


def method_name(method: str, content: Content) -> str:
    """A method's name in a table, with its number of training prompts."""
    prompts, last = content["run"]["config"]["train_prompts"], 0
    if method.startswith(IRO_PREFIX):
        return f"{method} ({iterations(method) * prompts} prompts)"
    if method == "one iteration, all prompts":
        last = max(iterations(row["method"]) for row in content["methods"] if row["method"].startswith(IRO_PREFIX))
        return f"one iteration on all {last * prompts} prompts"
    return METHODS.get(method, method)


def iterations(method: str) -> int:
    return int(method.removeprefix(IRO_PREFIX))


def quality_differences(content: Content) -> str:
    """Paired differences between methods, by pick."""
    pairs: dict[tuple[str, str], dict[str, str]] = {}
    for row in [*content["steps"], *content["controls"]]:
        pairs.setdefault((row["method"], row["over"]), {})[row["pick"]] = interval_text(row, "+")
    rows = [[f"{a} less {method_name(b, content)}", pair["reward"], pair["value"]] for (a, b), pair in pairs.items()]
    return table(["paired difference in reward", "by reward", "by value"], rows)


def quality_search(content: Content) -> str:
    """β, and the diversity of a search's completions."""
    chosen = "; ".join(", ".join(f"{beta:g}" for beta in betas[1:]) for betas in content["betas"])
    rows = [["β of the second and third value function, by seed", chosen]]
    if needed := content.get("prompts_to_tell_beta_half_from_two"):
        rows.append(["held-out prompts that would distinguish β 0.5 from 2: least, median, most", spread(needed)])
    rows += [[f"distinct-2 among the finals of {name}", f"{value:.2f}"] for name, value in content["diversity"].items()]
    return table(["measure", "value"], rows)


def spread(values: Sequence[float]) -> str:
    return f"{min(values):,}, {statistics.median(values):,}, {max(values):,}"


def decoding(content: Content) -> str:
    """Each ratio beside its aim."""
    rows = [[row["name"], f"{row['got']:.2f}", row["expected"]] for row in content["checks"]]
    return table(["ratio of base tokens a second", "measured", "aim"], rows)


def decoding_rates(content: Content) -> str:
    rows = [[name, f"{value:.0f}"] for name, value in content["tokens_per_second"].items()]
    return table(["", "base tokens a second"], rows)


def decoding_shares(content: Content) -> str:
    rows = [[name, f"{share:.1%}"] for name, share in content["share_of_wall_time"].items()]
    return table(["part of a search, 8 requests", "share of wall time"], rows)


def sharing(content: Content) -> str:
    """An engine's speed beside other processes, as a share of its speed alone."""
    names = ("beside a busy process / alone", "two at once, each / alone")
    return table(["ratio of base tokens a second", "measured"], [[name, f"{content[name]:.2f}"] for name in names])


def tilts(content: Content) -> str:
    """What a tilt costs, as ratios within one run."""
    rows = [
        [
            row["name"],
            f"{row['median']:.2f}",
            f"{min(row['ratios']):.2f} to {max(row['ratios']):.2f}",
            f"≥ {row['aim']:g}",
        ]
        for row in content["rows"]
    ]
    return table(["ratio", "median", "repeats", "aim"], rows)


def grammars(content: Content) -> str:
    """What the mask of a JSON schema costs a step."""
    rows = [
        ["masks, share of a step (aim: at most 10 %)", f"{content['share']:.1%}"],
        ["a step with masks / without (aim: at most 1.1)", f"{content['ratio']:.2f}"],
    ]
    return table([f"{content['run']['config']['rows']} rows", "measured"], rows)


def fit_memory(content: Content) -> str:
    """MiB that a fit adds, by value model and number of prompts."""
    head = ["MiB that a fit adds", *[f"{count:,} prompts" for count in content["prompts"]], "largest over smallest"]
    rows = [
        [
            model,
            *[f"{fit['bytes'] / MIB:.0f}" for fit in fits.values()],
            f"{content['largest_over_smallest'][model]:.2f}",
        ]
        for model, fits in content["fits"].items()
    ]
    return table(head, rows)


def overlap(content: Content) -> str:
    """A job's seconds and its engine's busy share, by when completions are graded."""
    rows = [
        [name, f"{content[key]['seconds']:.0f}", f"{content[key]['busy']:.0%}", str(content[key]["calls"])]
        for name, key in (("after each shard", "one after the other"), ("while the next is sampled", "overlapped"))
    ]
    return table(["completions are graded", "seconds", "engine busy", "calls of the judge"], rows)


def stopping(content: Content) -> str:
    """Reward and share of answers that stop, by method."""
    rows = [
        [name, interval_text(cell), interval_text(content["stopped"][name]) if name in content["stopped"] else ""]
        for name, cell in content["rewards"].items()
    ]
    return table(["method", "reward", "answers that stop"], rows)


def stopping_differences(content: Content) -> str:
    rows = [[name, interval_text(cell, "+")] for name, cell in content["gains"].items()]
    return table(["paired difference in reward", "mean and 95 % interval"], rows)


def families(content: Content) -> str:
    """Decoder families by outcome."""
    names = {
        "exact": "run exactly",
        "refused": "refused at load",
        "not built": "not tried",
        "wrong": "computed wrongly",
    }
    rows = [[label, str(content["outcomes"][outcome])] for outcome, label in names.items()]
    largest = max(row["difference"] for row in content["families"] if row["outcome"] == "exact")
    rows.append(["largest difference of those that run exactly, in nats", f"{largest:.0e}"])
    return table(["decoder families of transformers", "value"], rows)


def hostile(content: Content) -> str:
    """What came of all hostile graders."""
    chat = content["latencies"]
    rows = [
        ["hostile graders contained", f"{content['contained']} of {content['of']}"],
        ["processes left behind", str(content["processes_left"])],
        ["CPU seconds of sandboxes at rest", f"{content['at_rest']['cpu_seconds']:.2f}"],
        ["host memory not given back after 30 seconds, MiB", str(content["host"]["memory_kept_mib"])],
        *[
            [f"median chat latency, {name}, seconds", f"{chat[key]['chat']['p50']:.1f}"]
            for name, key in (("alone", "quiet"), ("beside harmless graders", "busy"), ("under attack", "attacked"))
        ],
    ]
    return table(["measure", "value"], rows)


def gpus(content: Content) -> str:
    """Users that one engine of GPUs carries, estimated."""
    rows = []
    for row in content["plan"]:
        search = f"{row['workload']['beam_width']} x {row['workload']['num_successors']}"
        rows.append([f"{row['engine']}, {row['model']}", search, str(row["users"])])
    return table(["engine and model", "W x K", "users"], rows)


def long_prompts(content: Content) -> str:
    rows = [[name, f"{seconds:.2f}"] for name, seconds in content["seconds"].items()]
    return table([f"{content['run']['config']['tokens']:,} tokens", "seconds"], rows)


def neighbours(content: Content) -> str:
    """p95 of a tenant's calls beside each attack, in milliseconds, and its ratio to the same alone. The last column
    has statuses of 500 and more in older results, and all but 2xx since."""
    kinds = list(content["rows"]["alone"]["p95"])
    rows = []
    for name, row in content["rows"].items():
        cells = [
            f"{1000 * row['p95'][kind]:.0f} ({row['ratio'][kind]:.2f})" if kind in row["p95"] else "no success"
            for kind in kinds
        ]
        failures = ", ".join(f"{count} of {status}" for status, count in row["failures"].items())
        rows.append([name, *cells, failures or "none"])
    return table(["beside", *kinds, content.get("failed", "5xx")], rows)


def page_reads(content: Content) -> str:
    """What the page reads, beside a job that trains."""
    rows = [
        [kind, str(read["count"]), f"{read['p50']:.0f}", f"{read['p95']:.0f}"]
        for kind, read in content["reads_ms"].items()
    ]
    return table(["read beside a job", "calls", "p50, ms", "p95, ms"], rows)


def way_to_an_answer(content: Content) -> str:
    """Seconds from the start of a server to the first aligned answer, by a script that waits for nothing else."""
    rows = [[name, f"{seconds:.1f}"] for name, seconds in content["seconds"].items()]
    rows.append(["all but the job", f"{content['seconds_beyond_the_job']:.1f}"])
    rows.append(["first paint", f"{content['first_paint_ms'] / 1000:.2f}"])
    return table(["step", "seconds"], rows)


def deployment(content: Content) -> str:
    """The steps of a deployment on a Docker engine: seconds, and what a client had before and lost."""
    rows = [[name, f"{seconds:.0f}"] for name, seconds in content["seconds"].items()]
    return table(["step", "seconds"], rows)


def deployment_losses(content: Content) -> str:
    rows = [[event, "; ".join(items) or "nothing"] for event, items in content["lost"].items()]
    return table(["event", "files, jobs and models lost or changed"], rows)


def deployment_images(content: Content) -> str:
    """Each image's size and user, and the secrets in its layers."""
    rows = [
        [name, f"{size / 1e9:.2f}", str(content["uid"][name]), ", ".join(content["leaked_secrets"][name]) or "none"]
        for name, size in content["size_bytes"].items()
    ]
    return table(["image", "GB", "user", "secrets in its layers"], rows)


def deployment_checks(content: Content) -> str:
    """What was checked beside losses."""
    before, after = content["tables"]
    rows = [
        ["revision of the tables before the upgrade", str(before)],
        ["revision of the tables after the upgrade", str(after)],
        ["healthy after the upgrade", ", ".join(names_with(content["health"], "healthy"))],
        ["checkpoints of jobs beside kills", "; ".join(", ".join(map(str, steps)) for steps in content["checkpoints"])],
        ["reward of a python grader", f"{content['python_grader']['reward']:g}"],
        ["things outside its sandbox that a python grader reached", f"{content['grader_reach']['reward']:g}"],
    ]
    if chat := content.get("aligned_chat"):  # older results have none
        rows += [
            ["job graded by the service of graders", chat["job_status"]],
            ["tokens of its model's chat that value functions valued", str(chat["value_tokens"])],
        ]
    return table(["check", "result"], rows)


def deployment_rebuild(content: Content) -> str:
    """Files of the server's image by two builds."""
    rows = [
        ["files installed in the server's image", f"{content['files']:,}"],
        ["of which a second build makes differently", str(content["differing_files"])],
    ]
    return table(["measure", "value"], rows)


def names_with(values: dict[str, str], value: str) -> list[str]:
    return [name for name in values if values[name] == value]
