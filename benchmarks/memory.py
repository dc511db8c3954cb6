"""Memory of the base model and T value functions: ``python -m benchmarks.memory --json``.

Each number is a process of its own that loads SmolLM2-135M in fp32 and T value functions, and decodes one guided
request with them: linear heads; adapters on a shared backbone of a third of the layers; and the paper's way, T value
models of the base's size, which are loaded and not asked.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModel

from benchmarks.record import command_line, finish
from benchmarks.workload import BEAM, PASSAGE, PROMPT_TOKENS, linear_heads
from iro_server import JsonObject
from iro_server.decoding.base import Scorer
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from value_heads import LoraBackbone, LoraValues

KINDS = {"linear": "linear heads", "lora": "LoRA on a third of the layers", "models": "T models of the base's size"}
COUNTS = range(1, 9)
TOKENS = 48


def resident(kind: str, count: int) -> int:
    """Bytes resident in this process with the base and so many value functions, after a request."""
    models: list[Any] = []
    with EmbeddedEngine(prepare_model()) as engine:
        scorer: Scorer | None = None
        if kind == "linear" and count:
            scorer = linear_heads(engine.info, count)
        elif kind == "lora":
            backbone = LoraBackbone(prepare_model(), engine.info.num_layers // 3)
            for _ in range(count):
                backbone.add_iteration()
            scorer = LoraValues(backbone, [1.0] * count)
        elif kind == "models":
            models = [
                own_weights(AutoModel.from_pretrained(prepare_model(), dtype=torch.float32)) for _ in range(count)
            ]
        prompt = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]
        asyncio.run(guided_search(engine, prompt, BEAM, Sampling(seed=0), TOKENS, scorer))
        memory: int = psutil.Process().memory_info().rss
    del models
    return memory


def own_weights(model: torch.nn.Module) -> torch.nn.Module:
    """``model`` with weights that share no page with a file that others have mapped."""
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


def measured(kind: str, count: int) -> int:
    command = [sys.executable, "-m", "benchmarks.memory", "--child", kind, str(count)]
    print(f"{kind}, T={count}", file=sys.stderr, flush=True)
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def draw(result: JsonObject, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.6))
    for kind, name in KINDS.items():
        bytes_of = [result["base"], *result[kind]]
        axes.plot([0, *COUNTS], [each / result["base"] for each in bytes_of], marker="o", label=name)
    axes.set(xlabel="value functions T", ylabel="memory ÷ the base model's process", ylim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = command_line("memory", __doc__)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        kind, count = args.child
        print(resident(kind, int(count)))
        return
    result: JsonObject = {"base": measured("linear", 0)}
    result |= {kind: [measured(kind, count) for count in COUNTS] for kind in KINDS}
    args.out.mkdir(parents=True, exist_ok=True)
    draw(result, args.out / "memory.png")
    finish(args, result, report)


def report(result: JsonObject) -> None:
    print(f"base alone: {result['base'] / 2**20:.0f} MiB; with T = 1 to 8 value functions, less that:")
    for kind, name in KINDS.items():
        more = [f"{(each - result['base']) / 2**20:.0f}" for each in result[kind]]
        print(f"{name}: {', '.join(more)} MiB")


if __name__ == "__main__":
    main()
