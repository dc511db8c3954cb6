"""Which decoder families the embedded engine runs: ``python -m benchmarks.families``.

Of every family that transformers can load as a causal language model, a tiny random model: what the engine samples, two
sessions in one batch, against the model's own full forward pass over each row. Windows and the like are longer than the
rows of the engine's check at load, and shorter than the rows here.
"""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from benchmarks.family_configs import NOT_BUILT, VOCABULARY, tiny_config
from benchmarks.record import command_line, finish
from iro_server import JsonObject
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine

EXACT = 1e-4  # nats, fp32
MOST_WEIGHTS = 20_000_000
PROMPTS = (17, 11)
OUTCOMES = ("exact", "refused", "not built", "wrong")


@dataclass(frozen=True)
class Verdict:
    """``outcome``: exact, refused, wrong (which is a defect), or not built. ``difference``: nats, where it ran."""

    family: str
    outcome: str
    architecture: str = ""
    why: str = ""
    difference: float | None = None


def judge(family: str, **changes: Any) -> Verdict:
    """A tiny random model of ``family``, its configuration changed by ``changes``: what the engine makes of it."""
    if family in NOT_BUILT:
        return Verdict(family, "not built", why=NOT_BUILT[family])
    with tempfile.TemporaryDirectory() as folder:
        architecture = save_model(family, Path(folder), **changes)
        try:
            difference = engine_difference(Path(folder))
        except ValueError as refused:
            if "the embedded engine cannot run" not in str(refused):
                raise
            why = str(refused).partition(": ")[2].partition(". Serve the model")[0]
            return Verdict(family, "refused", architecture, why)
    return Verdict(family, "exact" if difference <= EXACT else "wrong", architecture, "", difference)


def save_model(family: str, folder: Path, **changes: Any) -> str:
    """Write a random model whose tokens depend strongly on those before, and a tokenizer. Returns the class's name."""
    torch.manual_seed(0)
    config = tiny_config(family, **changes)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in AutoModelForCausalLM.from_config(config).parameters())
    if size > MOST_WEIGHTS:
        raise RuntimeError(f"{family}: {size} weights are too many for a tiny model: shrink its configuration")
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model)
    reference_logprobs(model.eval(), torch.arange(3, 3 + sum(PROMPTS))[None])  # transformers itself runs it
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return type(model).__name__


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Weights that pass on the size of what they read; as initialised, most families' layers do next to nothing."""
    for name, weight in model.named_parameters():
        if weight.dim() >= 2:
            weight.normal_(0, 1.2 / weight.shape[-1] ** 0.5)
        elif name.endswith("weight"):
            weight.add_(torch.randn_like(weight), alpha=0.2)
        elif name.endswith("bias"):
            weight.normal_(0, 0.2)


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1", eos_token="w2")
    fast.save_pretrained(folder)


def engine_difference(folder: Path) -> float:
    """Of log-probabilities, in nats, the engine's from the model's own. ValueError where the engine refuses."""
    with EmbeddedEngine(folder) as engine:
        sessions = asyncio.run(sampled(engine))
    reference: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return max(float((logprobs - reference_logprobs(reference, rows)).abs().max()) for rows, logprobs in sessions)


async def sampled(engine: EmbeddedEngine) -> tuple[tuple[Tensor, Tensor], ...]:
    """Of two sessions that step together: token ids [R, prompt + 11], and log-probabilities [R, 11] of the last."""
    return await asyncio.gather(
        _session(engine, PROMPTS[0], [([0], 3, 5), ([2, 0], 2, 6)]),
        _session(engine, PROMPTS[1], [([0], 1, 5), ([0], 1, 6)]),
    )


async def _session(
    engine: EmbeddedEngine, length: int, rounds: list[tuple[list[int], int, int]]
) -> tuple[Tensor, Tensor]:
    prompt = torch.randint(3, VOCABULARY - 8, (1, length), generator=torch.Generator().manual_seed(length))
    session = await engine.open(prompt[0].tolist(), Sampling(seed=length))
    rows, logprobs = prompt, torch.empty(1, 0)
    for parents, successors, count in rounds:
        chunk = await session.extend(parents, successors, count)
        origin = torch.tensor(parents).repeat_interleave(successors)
        rows = torch.cat([rows[origin], chunk.tokens_RL], dim=1)
        logprobs = torch.cat([logprobs[origin], chunk.logprobs_RL], dim=1)
    session.close()
    return rows, logprobs


@torch.no_grad()
def reference_logprobs(model: Any, rows: Tensor, count: int = 11) -> Tensor:
    """Of the last ``count`` tokens of each row, by a full forward pass over that row alone."""
    logits = torch.cat([model(input_ids=row[None], use_cache=False).logits for row in rows])
    logprobs = torch.log_softmax(logits[:, -count - 1 : -1], dim=-1)
    return logprobs.gather(2, rows[:, -count:, None])[..., 0]


def table(content: JsonObject) -> str:
    """Of a results file, as Markdown: families that run, refused ones by reason, and those without a tiny model."""
    groups: dict[tuple[str, str], list[str]] = {}
    for verdict in (Verdict(**row) for row in content["families"]):
        groups.setdefault((verdict.outcome, reason(verdict)), []).append(verdict.family)

    def rank(group: tuple[str, str]) -> tuple[int, int]:
        return OUTCOMES.index(group[0]), -len(groups[group])

    lines = ["| families | embedded engine | why |", "|---|---|---|"]
    for outcome, why in sorted(groups, key=rank):
        label = {"exact": "runs exactly", "not built": "not tried"}.get(outcome, outcome)
        lines.append(f"| {', '.join(sorted(groups[outcome, why]))} | {label} | {why} |")
    return "\n".join(lines)


def reason(verdict: Verdict) -> str:
    """``why`` without the size of a difference or an error's text."""
    return re.split(r" by [\d.]| \(| are off", verdict.why)[0]


def main() -> None:
    parser = command_line("families", __doc__)
    parser.add_argument("families", nargs="*", help="print only these families; default: all, and write the results")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    verdicts = []
    for family in args.families or CAUSAL:
        verdicts.append(judge(family))
        print(json.dumps(asdict(verdicts[-1])), flush=True)
    if not args.families:
        outcomes = {name: sum(verdict.outcome == name for verdict in verdicts) for name in OUTCOMES}
        numbers = {"outcomes": outcomes, "families": [asdict(verdict) for verdict in verdicts]}
        finish(args, numbers, lambda numbers: print(table(numbers)))


if __name__ == "__main__":
    main()
