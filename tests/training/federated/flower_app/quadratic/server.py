from __future__ import annotations

import json
from pathlib import Path

import torch
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

from quadratic.task import SHAPES
from training.federated.flower import AsyncServer
from training.federated.rules import RULES
from training.federated.simulator import Event, Settings

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    out = Path(str(config["out"]))
    fields = ("clients", "concurrency", "buffer-size", "refill", "timeout")
    settings = Settings(**{name.replace("-", "_"): config[name] for name in fields})
    model = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}

    def note(event: Event) -> None:
        with (out / "events.jsonl").open("a") as file:
            file.write(json.dumps(event) + "\n")

    def crash(round: int, tensors: dict) -> None:
        if 0 < config["crash-after"] <= round:
            raise RuntimeError("the server is gone")

    # So that a timeout does not count the time in which processes start.
    list(grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in grid.get_node_ids()]))
    rule = RULES[str(config["rule"])](lr=config["lr"])
    server = AsyncServer(
        grid, model, rule, settings, checkpoint=out / "server.pt", on_round=crash, on_event=note, poll=0.05
    )
    result = server.run(int(config["rounds"]))
    torch.save({"model": result, "state": server.state, "round": server.round}, out / "partial.pt")
    (out / "partial.pt").rename(out / "result.pt")
