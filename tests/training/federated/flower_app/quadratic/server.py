from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, MessageType, RecordDict, UserConfig
from flwr.serverapp import Grid, ServerApp

from quadratic.task import SHAPES
from training.federated.buffered import Event, FederatedSettings
from training.federated.flower import AsyncServer
from training.federated.rules import RULES

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    # So that a timeout does not count the time in which processes start.
    list(grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in grid.get_node_ids()]))
    config = context.run_config
    trains(grid, config)
    if config["late"] >= 0:
        waits_in_vain(grid, config)


def trains(grid: Grid, config: UserConfig) -> None:
    def crash(round: int, tensors: dict) -> None:
        if 0 < config["crash-after"] <= round:
            raise RuntimeError("the server is gone")

    out = Path(str(config["out"]))
    server = server_of(grid, config, "events.jsonl", checkpoint=out / "server.pt", on_round=crash)
    result = server.run(int(config["rounds"]))
    save({"model": result, "state": server.state, "round": server.round}, out / "result.pt")


def waits_in_vain(grid: Grid, config: UserConfig) -> None:
    """A second server of the same clients, until it has noticed one that answers late and one that never does."""
    observed = set()
    server = server_of(
        grid,
        config,
        "delayed.jsonl",
        timeout=config["patience"],
        on_event=lambda event: observed.add((event.kind, event.client)),
    )
    awaited = {("late", config["late"]), ("reject", config["late"]), ("late", config["vanishes"])}
    while not awaited <= observed and server.round < 1000:
        server.run(server.round + 1)
    noticed = server.round
    server.run(noticed + 2)
    save({"noticed": noticed, "round": server.round}, Path(str(config["out"])) / "delayed.pt")


def server_of(
    grid: Grid,
    config: UserConfig,
    events: str,
    timeout: float = math.inf,
    on_event: Callable[[Event], None] = lambda event: None,
    **options: Any,
) -> AsyncServer:
    def note(event: Event) -> None:
        on_event(event)
        with (Path(str(config["out"])) / events).open("a") as file:
            file.write(json.dumps(event) + "\n")

    settings = FederatedSettings(
        clients=config["clients"],
        concurrency=config["concurrency"],
        buffer_size=config["buffer-size"],
        timeout=timeout,
    )
    model = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    rule = RULES["fadas-divide"](lr=config["lr"])
    return AsyncServer(grid, model, rule, settings, on_event=note, poll=0.05, **options)


def save(content: dict, path: Path) -> None:
    torch.save(content, path.with_suffix(".partial"))
    path.with_suffix(".partial").rename(path)
