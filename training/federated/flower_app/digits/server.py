"""A complete asynchronous ServerApp."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from digits.task import accuracy, network
from training.federated.buffered import FederatedSettings
from training.federated.flower import AsyncServer
from training.federated.rules import make_rule

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    logging.basicConfig(format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    config = context.run_config
    model = network()

    def show(round: int, tensors: dict) -> None:
        model.load_state_dict(tensors)
        print(f"round {round}: {accuracy(model):.3f} of the test digits are right", flush=True)

    settings = FederatedSettings(
        clients=config["clients"],
        concurrency=config["concurrency"],
        buffer_size=config["buffer-size"],
        timeout=config["timeout"],
    )
    checkpoint = Path(str(config["checkpoint"])) if config["checkpoint"] else None
    rule = make_rule(str(config["rule"]), float(config["lr"]), settings.clients)
    server = AsyncServer(grid, model.state_dict(), rule, settings, checkpoint=checkpoint, on_round=show)
    server.run(rounds=int(config["rounds"]))
