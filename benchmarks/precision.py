"""What products in bfloat16 gain and change on a CPU: ``python -m benchmarks.precision --json``.

Tokens a second of plain rows by engines of both precisions, in turn, SmolLM2-135M, prompts of 40 tokens, and nats from
the float32 model's next-token distributions, at each token of its own samples, beside those of the model that computes
in bfloat16 throughout, as GPUs do. Run it on a quiet machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from transformers import AutoModelForCausalLM

from benchmarks.record import command_line, finish
from benchmarks.tables import table
from benchmarks.workload import PASSAGE, PROMPT_TOKENS
from iro_server import JsonObject
from iro_server.engines.base import Chunk, Sampling
from iro_server.engines.embedded import PRODUCTS, EmbeddedEngine
from iro_server.engines.endpoints import Precision
from iro_server.engines.packed_linear import packed_forwards
from iro_server.engines.prepare import prepare_model

LOADS = ((1, 1), (1, 4), (1, 16), (8, 16))  # requests at once, and rows of each
PRODUCTS_ALONE, THROUGHOUT = "products in bfloat16", "all in bfloat16"


async def draw(engine: EmbeddedEngine, requests: int, rows: int, tokens: int) -> list[Chunk]:
    prompt_ids = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]

    async def request(seed: int) -> Chunk:
        session = await engine.open(prompt_ids, Sampling(seed=seed))
        chunk = await session.extend([0], rows, tokens)
        session.close()
        return chunk

    return await asyncio.gather(*map(request, range(requests)))


def rate(engine: EmbeddedEngine, requests: int, rows: int, tokens: int) -> float:
    """Tokens a second."""
    start = time.perf_counter()
    chunks = asyncio.run(draw(engine, requests, rows, tokens))
    return sum(int(chunk.lengths_R.sum()) for chunk in chunks) / (time.perf_counter() - start)


def rates(model_dir: Path, tokens: int, repeats: int) -> list[JsonObject]:
    """Medians, the precisions in turn. One engine at a time: the threads of another in the process would slow it."""
    rounds: dict[Precision, list[list[float]]] = {name: [] for name in PRODUCTS}
    for _ in range(repeats):
        for name, measured in rounds.items():
            with EmbeddedEngine(model_dir, precision=name) as engine:
                rate(engine, *LOADS[0], tokens=8)
                measured.append([rate(engine, *load, tokens=tokens) for load in LOADS])
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in rounds.items()}
    return [
        {
            "requests": requests,
            "rows": rows,
            "tokens_per_second": {name: medians[name][i] for name in PRODUCTS},
            "ratio": medians["bfloat16"][i] / medians["float32"][i],
        }
        for i, (requests, rows) in enumerate(LOADS)
    ]


@torch.no_grad()
def drifts(model_dir: Path, prompt_ids: Sequence[int], chunk: Chunk) -> JsonObject:
    """Mean nats from the float32 model's next-token distributions at each token of the chunk."""
    ids_RS = torch.cat([torch.tensor([prompt_ids] * len(chunk.tokens_RL)), chunk.tokens_RL], 1)
    is_drawn_RT = torch.arange(chunk.tokens_RL.shape[1]) < chunk.lengths_R[:, None]

    def next_logprobs(model: nn.Module) -> Tensor:
        logits_RTV: Tensor = model(ids_RS).logits[:, len(prompt_ids) - 1 : -1]
        return logits_RTV[is_drawn_RT].float().log_softmax(-1)

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    expected_NV = next_logprobs(model)
    for linear, forward in packed_forwards(model, 2**62, torch.bfloat16).items():
        linear.forward = forward  # type: ignore[method-assign, assignment]
    rounded = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16).eval()
    return {
        name: float(kl_div(next_logprobs(each), expected_NV, log_target=True, reduction="batchmean"))
        for name, each in ((PRODUCTS_ALONE, model), (THROUGHOUT, rounded))
    }


def measure(tokens: int, repeats: int) -> JsonObject:
    model_dir = prepare_model()
    measured = rates(model_dir, tokens, repeats)
    with EmbeddedEngine(model_dir) as engine:
        (chunk,) = asyncio.run(draw(engine, 1, 16, tokens))
        prompt_ids = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]
        threads = engine.max_threads
    return {"rates": measured, "nats_per_token": drifts(model_dir, prompt_ids, chunk), "threads": threads}


def main() -> None:
    parser = command_line("precision", __doc__)
    parser.add_argument("--tokens", type=int, default=24, help="new tokens a row")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    finish(args, measure(args.tokens, args.repeats), report)


def speeds(content: JsonObject) -> str:
    """Tokens a second by load and precision."""
    rows = [
        [
            str(row["requests"]),
            str(row["rows"]),
            *(f"{row['tokens_per_second'][name]:.0f}" for name in PRODUCTS),
            f"{row['ratio']:.2f}",
        ]
        for row in content["rates"]
    ]
    return table(["requests", "rows of each", *(f"{name}, tokens a second" for name in PRODUCTS), "ratio"], rows)


def distances(content: JsonObject) -> str:
    """Nats a token from the float32 model."""
    rows = [[name, f"{drift:.5f}"] for name, drift in content["nats_per_token"].items()]
    return table(["the model", "mean nats of a token's distribution from float32's"], rows)


def report(result: JsonObject) -> None:
    print(speeds(result), distances(result), sep="\n\n")


if __name__ == "__main__":
    main()
