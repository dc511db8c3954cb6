from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from quadratic.task import trained

app = ClientApp()


@app.query()
def wake(message: Message, context: Context) -> Message:
    return Message(RecordDict(), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    config, training = context.run_config, message.content["config"]
    me = training["client"]
    time.sleep(float(config["pause"]) * (1 + me % 4))
    arrays = {name: array.numpy() for name, array in message.content["arrays"].items()}
    arrays = trained(arrays, me, training["seed"])
    if me == config["nan"]:
        arrays["vector"][0] = np.nan
    if me == config["shape"]:
        arrays["vector"] = np.zeros(5)
    if me == config["raises"]:
        raise RuntimeError("no memory left")
    out = Path(str(config["out"]))
    waits = {config["late"]: float(config["patience"]) + 1, config["vanishes"]: 300.0}.get(me, 0.0)
    if waits and (out / "result.pt").exists():
        deadline = time.monotonic() + waits
        while not (out / "delayed.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return Message(RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": me + 1})}), reply_to=message)
