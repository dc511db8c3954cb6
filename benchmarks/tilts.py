"""What a tilt costs, as ratios within one run: ``python -m benchmarks.tilts --json``.

Tokens a second with a tilt over those without one, at equal rows. Against searches of 16 rows, which need no tilt:
how much sooner one row answers alone, and how many answers a second 16 such requests at once give, over 16 searches at
once and over searches one after another. fp32, SmolLM2-135M, prompts of 40 tokens, tilts with all parts. The sides of a
ratio take turns. Run it on a quiet machine.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.record import command_line, finish
from benchmarks.workload import BEAM, PASSAGE, PROMPT_TOKENS, TILT_RANK, linear_heads, random_tilt
from iro_server import JsonObject
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from value_heads import ValueStack
from value_heads.tilt import Tilt

AIM, SPEEDUP_AIM = 0.95, 10.0
ROWS, TILTS = (1, 4, 16, 64), 8


class Bench:
    def __init__(self, engine: EmbeddedEngine, tokens: int, repeats: int) -> None:
        self.engine, self.tokens, self.repeats = engine, tokens, repeats
        self.prompt = engine.tokenizer(PASSAGE)["input_ids"][:PROMPT_TOKENS]

    def tilts(self, rank: int, count: int = 1) -> list[Tilt]:
        vocabulary, width = self.engine.frozen.head_weight.shape
        tilt = partial(random_tilt, vocabulary, width, self.engine.info.eos_ids, rank=rank)
        return [tilt(seed=seed) for seed in range(count)]

    def seconds(
        self, params: SearchParams, steerings: list[Steering | None], values: ValueStack | None = None
    ) -> float:
        """Of so many requests at once."""

        async def go() -> None:
            searches = [
                guided_search(
                    self.engine, self.prompt, params, Sampling(seed=seed), self.tokens, values, steering=steering
                )
                for seed, steering in enumerate(steerings)
            ]
            await asyncio.gather(*searches)

        start = time.perf_counter()
        asyncio.run(go())
        return time.perf_counter() - start

    def ratio(
        self, params: SearchParams, tilts: Sequence[Tilt], params_of_other: SearchParams, first_seen: bool = False
    ) -> list[float]:
        """The other's seconds over the tilted requests', of each repeat after one that does not count. ``first_seen``:
        the engine has to bind each tilt to its output head."""
        values = linear_heads(self.engine.info, 1) if params_of_other.rows > params.rows else None
        plain: list[Steering | None] = [None] * len(tilts)

        def tilted() -> list[Steering | None]:
            return [Steering(replace(tilt) if first_seen else tilt) for tilt in tilts]

        pairs = [
            (self.seconds(params_of_other, plain, values), self.seconds(params, tilted()))
            for _ in range(self.repeats + 1)
        ]
        return [other / ours for other, ours in pairs[1:]]

    def against_searches(self, tilted: Sequence[Steering]) -> dict[str, list[float]]:
        """Answers a second of these requests at once over those of as many searches, which run at once or one after
        another, of each repeat."""
        values, count = linear_heads(self.engine.info, 1), len(tilted)
        ratios: dict[str, list[float]] = {"at once": [], "one after another": []}
        for _ in range(self.repeats):
            requests = self.seconds(SearchParams(), list(tilted))
            ratios["at once"].append(self.seconds(BEAM, [None] * count, values) / requests)
            ratios["one after another"].append(count * self.seconds(BEAM, [None], values) / requests)
        return ratios


def costs(bench: Bench, rank: int) -> dict[str, list[float]]:
    """Speed with tilts over that without, each repeat's."""
    [tilt], plain, sixteen = bench.tilts(rank), SearchParams(), SearchParams(num_successors=16)
    ratios = {
        f"a tilt of rank {rank}, {rows} rows / none": bench.ratio(rows_at_once, [tilt], rows_at_once)
        for rows in ROWS
        for rows_at_once in (SearchParams(num_successors=rows),)
    }
    ratios[f"{TILTS} requests, a tilt of rank {rank} each / none"] = bench.ratio(plain, bench.tilts(rank, TILTS), plain)
    first_seen = bench.ratio(sixteen, [tilt], sixteen, first_seen=True)
    ratios[f"a tilt of rank {rank} that is new to the engine, 16 rows / none"] = first_seen
    return ratios


def speedups(bench: Bench, rank: int) -> dict[str, list[float]]:
    """How much sooner one tilted row answers than a search of 16 rows, each repeat's."""
    [tilt] = bench.tilts(rank)
    ratios = {
        f"one answer, a tilt at one row / a search of {BEAM.rows} rows": bench.ratio(SearchParams(), [tilt], BEAM)
    }
    for order, values in bench.against_searches([Steering(tilt)] * BEAM.rows).items():
        name = f"answers a second, {BEAM.rows} requests of one row at once / searches of {BEAM.rows} rows {order}"
        ratios[name] = values
    return ratios


def measure(bench: Bench, ranks: Sequence[int]) -> JsonObject:
    by_aim = {
        AIM: {name: ratios for rank in ranks for name, ratios in costs(bench, rank).items()},
        SPEEDUP_AIM: speedups(bench, max(ranks)),
    }
    rows = [
        {"name": name, "median": statistics.median(values), "ratios": values, "aim": aim}
        for aim, ratios in by_aim.items()
        for name, values in ratios.items()
    ]
    return {"rows": rows, "tokens": bench.tokens}


def report(numbers: JsonObject) -> None:
    for row in numbers["rows"]:
        print(f"{row['name']}: {row['median']:.2f} (aim {row['aim']:g})")


def main() -> None:
    parser = command_line("tilts", __doc__)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a row")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[TILT_RANK, 2 * TILT_RANK], help="of the tilts' maps")
    args = parser.parse_args()
    with EmbeddedEngine(prepare_model()) as engine:
        finish(args, measure(Bench(engine, args.tokens, args.repeats), args.ranks), report)


if __name__ == "__main__":
    main()
