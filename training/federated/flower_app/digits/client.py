"""A ClientApp for any of flwr's own strategies; it does not depend on the server's rule."""

from __future__ import annotations

import time

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import cross_entropy

from digits.task import network, part

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    client, clients = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    pixels, labels = part(client, clients)
    time.sleep(float(context.run_config["slow"]) * client)  # later clients are slower
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimiser = torch.optim.SGD(model.parameters(), lr=float(context.run_config["local-lr"]))
    shuffle = torch.Generator().manual_seed(int(message.content["config"]["seed"]))
    for _ in range(int(context.run_config["local-epochs"])):
        for batch in torch.randperm(len(labels), generator=shuffle).split(50):
            optimiser.zero_grad()
            cross_entropy(model(pixels[batch]), labels[batch]).backward()
            optimiser.step()
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)
