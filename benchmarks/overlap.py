"""How busy the engine is while a job's completions are graded: ``python -m benchmarks.overlap --json``.

A job of one iteration on the real model, twice: with a score_model grader whose judge, a server in this process,
answers 16 calls at once after ``--seconds`` each. Once each shard is graded before the next is sampled, once they
overlap. Busy: the seconds that the engine steps, as a share of all until the job has ended.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import psutil

from benchmarks.record import command_line, finish
from benchmarks.workload import PASSAGE
from iro_server import JsonObject
from iro_server.engines.describe import Description
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import prepare_model
from training.iro import ahead
from training.iro.config import AlignConfig
from training.iro.executor import LocalExecutor
from training.iro.loop import align
from training.run import Job, Run


class Judge(BaseHTTPRequestHandler):
    """Answers with the share of the letter e in the last message, after a while."""

    protocol_version = "HTTP/1.1"
    seconds = 2.0
    calls: ClassVar[list[float]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        self.calls.append(time.monotonic())
        time.sleep(self.seconds)
        answer = json.dumps({"result": text.count("e") / max(1, len(text))})
        message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": answer}}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        sent = json.dumps({"id": "1", "object": "chat.completion", "choices": [message], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


class Timed(EmbeddedEngine):
    """``stepping``: seconds within its steps."""

    stepping = 0.0

    def _step(self) -> None:
        began = time.monotonic()
        super()._step()
        self.stepping += time.monotonic() - began


@contextmanager
def judge(seconds: float) -> Iterator[str]:
    Judge.seconds = seconds
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()


def measured(folder: Path, url: str, args: argparse.Namespace) -> dict[str, float]:
    """Of one job: seconds in all and within steps, the busy share, and calls of the judge."""
    words = PASSAGE.split()
    lengths = range(4, 4 + -(-args.prompts // len(words)))
    rows = [{"prompt": " ".join([*words, *words][start : start + n])} for n in lengths for start in range(len(words))]
    rows = rows[: args.prompts]
    train = folder / "train.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    message = {"role": "user", "content": "{{sample.output_text}}"}
    grader = {"type": "score_model", "name": "judge", "model": "judge", "base_url": url, "input": [message]}
    config = AlignConfig(
        model_dir=prepare_model(),
        training_file=train,
        grader=grader,
        iterations=1,
        rollouts_per_prompt=args.rollouts,
        beam_width=1,
        num_successors=args.rollouts,
        max_tokens=args.max_tokens,
        validation_prompts=args.prompts // 4,
        counted_tokens=100,
        concurrency=4,
    )
    Judge.calls.clear()
    with closing(Timed(prepare_model())) as engine:

        def run(config: AlignConfig, run: Run) -> JsonObject:
            return align(config, run, Description.of_engine(engine), LocalExecutor(engine, config.model_dir))

        began = time.monotonic()
        result = Job("align", "", AlignConfig, run).execute(config, folder / "run")
        wall, stepping = time.monotonic() - began, engine.stepping
    (row,) = result["history"]
    return {
        "seconds": wall,
        "stepping": stepping,
        "busy": stepping / wall,
        "calls": len(Judge.calls),
        "train_mean_reward": row["train_mean_reward"],
        "full_valid_mean_reward": row["full_valid_mean_reward"],
    }


def main() -> None:
    parser = command_line("overlap", __doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds of one answer of the judge")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=16)
    args = parser.parse_args()
    names = ("prompts", "rollouts", "max_tokens")
    result: JsonObject = {"judge_seconds": args.seconds} | {name: getattr(args, name) for name in names}
    pieces = ahead.AHEAD
    with judge(args.seconds) as url, tempfile.TemporaryDirectory(prefix="iro-overlap-") as folder:
        for name, waiting in (("one after the other", 0), ("overlapped", pieces)):
            ahead.AHEAD = waiting
            (Path(folder) / name).mkdir()
            result[name] = measured(Path(folder) / name, url, args)
    ahead.AHEAD = pieces
    result["load_average"] = psutil.getloadavg()[0]
    finish(args, result, report)


def report(result: JsonObject) -> None:
    for name in ("one after the other", "overlapped"):
        job = result[name]
        print(f"{name}: {job['seconds']:.0f} s, engine busy {job['busy']:.0%}, {job['calls']} calls of the judge")


if __name__ == "__main__":
    main()
