"""Agents in several processes, on one machine or several, over torch.distributed's gloo.

Start the same script everywhere with ``torchrun``; each process holds a block of agents. Only neighbours exchange rows.
Compressed messages travel as bytes (``packing``).
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_flatten, tree_unflatten

from training.bilevel.distributed.compressors import Field, draw_seeds
from training.bilevel.distributed.network import Average, Message
from training.bilevel.distributed.packing import pack, packed_bytes, unpack
from training.bilevel.problem import Tree
from training.checkpoints import FolderCheckpoints

SERVER = 0
HIGHEST_POWER = 2  # of W in a strategy
TOLERANCE = 1e-10

T = TypeVar("T")
Transfer = Callable[[torch.Tensor, int], dist.Work | None]  # dist.isend or dist.irecv


class ProcessLost(ConnectionError):
    """Another process has ended or has exceeded the timeout."""


class Peer(NamedTuple):
    """A neighbouring process: the rows that it needs of this process, and the weights [held, k] of its k rows here."""

    rank: int
    outgoing_rows: list[int]
    incoming_weights: torch.Tensor


class Route(NamedTuple):
    """One multiplication by W: local [held, held] weighs the rows of this process."""

    local: torch.Tensor
    peers: list[Peer]


class Plan(NamedTuple):
    """Weights as a polynomial Σ_k coefficients[k] W^k, so that only neighbours in W communicate."""

    route: Route
    coefficients: list[float]


class Processes:
    """A ``Network`` of ``agents``, in equal blocks over the processes that torchrun started.

    ``mixings``: the W [n, n] of each topology in use; the weights of ``mix`` are polynomials of one of them, and each
    power takes a round. ``timeout``: seconds of silence after which a process is lost and methods raise ProcessLost.
    """

    def __init__(self, agents: int, mixings: Sequence[torch.Tensor] = (), timeout: float = 300.0) -> None:
        """Raises ValueError for more processes than agents, and for a W of a different number of agents."""
        for W in mixings:
            if len(W) != agents:
                raise ValueError(f"mixing matrix: is of {len(W)} agents; make it {agents}")
        with _or_lost("the others"):
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size > agents:
            self.close()
            raise ValueError(f"{agents} agents cannot fill {self.size} processes; start at most one per agent")
        self.blocks = [range(agents * i // self.size, agents * (i + 1) // self.size) for i in range(self.size)]
        self.agents, self.mixings = agents, list(mixings)
        self._plans: dict[int, tuple[torch.Tensor, Plan]] = {}
        self.barrier()  # connects all processes, so that later traffic is that of the algorithm

    def close(self) -> None:
        dist.destroy_process_group()

    def held(self, agents: int) -> range:
        if agents != self.agents:
            raise ValueError(f"the network has {self.agents} agents, the algorithm {agents}: make them equal")
        return self.blocks[self.rank]

    def mix(self, weights: torch.Tensor, tree: Tree) -> Tree:
        """Raises ValueError if ``weights`` are not a polynomial of one of ``mixings``."""
        route, (constant, *coefficients) = self._plan(weights)
        leaves, spec = tree_flatten(tree)
        rows = torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves], dim=1)
        total = constant * rows
        for coefficient in coefficients:
            rows = self._exchange(route, rows)
            total = total + coefficient * rows
        parts = total.split([leaf[0].numel() for leaf in leaves], dim=1)
        return tree_unflatten([part.view_as(leaf).to(leaf) for part, leaf in zip(parts, leaves, strict=True)], spec)

    def average(self, messages: Sequence[Message], generator: torch.Generator) -> list[Average]:
        """Workers send encoded messages to the server's process, which broadcasts the means uncompressed."""
        seeds = [draw_seeds(self.agents, generator) for _ in messages]
        held = self.blocks[self.rank]
        encoded = [
            message.compressor.encode(message.vectors, row_seeds[held])
            for message, row_seeds in zip(messages, seeds, strict=True)
        ]
        packed = [pack(fields, _layout(message)) for message, fields in zip(messages, encoded, strict=True)]
        arrived = self._to_server(np.concatenate(packed, axis=1))
        means = [message.vectors.new_zeros(message.vectors.shape[1]) for message in messages]
        if self.rank == SERVER:
            ends = np.cumsum([packed_bytes(_layout(message)) for message in messages])[:-1]
            means = [
                _decode(message, unpack(part, _layout(message), message.vectors.dtype), row_seeds).mean(0)
                for message, part, row_seeds in zip(messages, np.split(arrived, ends, axis=1), seeds, strict=True)
            ]
        joined = torch.cat(means)
        with _or_lost("the server" if self.rank != SERVER else "a worker"):
            dist.broadcast(joined, SERVER)
        means = [part.to(mean) for part, mean in zip(joined.split([len(mean) for mean in means]), means, strict=True)]
        sent = [
            _decode(message, fields, row_seeds[held])
            for message, fields, row_seeds in zip(messages, encoded, seeds, strict=True)
        ]
        return [Average(mean, vectors) for mean, vectors in zip(means, sent, strict=True)]

    def barrier(self) -> None:
        """Waits for all processes."""
        with _or_lost("another process"):
            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in every process. Not limited to neighbours: for the start and the end."""
        values = [value] * self.size
        with _or_lost("another process"):
            dist.all_gather_object(values, value)
        return values

    def _plan(self, weights: torch.Tensor) -> Plan:
        if id(weights) not in self._plans:
            W, coefficients = _polynomial(weights, self.mixings)
            self._plans[id(weights)] = weights, Plan(self._route(W), coefficients)
        return self._plans[id(weights)][1]

    def _route(self, W: torch.Tensor) -> Route:
        held, peers = list(self.blocks[self.rank]), []
        for peer, block in enumerate(self.blocks):
            remote = list(block)
            outgoing = [row for row, j in enumerate(held) if W[remote, j].any()]
            incoming = [j for j in remote if W[held, j].any()]
            if peer != self.rank and (outgoing or incoming):
                peers.append(Peer(peer, outgoing, W[held][:, incoming]))
        return Route(W[held][:, held], peers)

    def _exchange(self, route: Route, rows: torch.Tensor) -> torch.Tensor:
        """W times the rows of all agents, for the rows [held, d] of this process."""
        sends, receives = [], []
        for peer, outgoing_rows, weights in route.peers:
            outgoing, incoming = rows[outgoing_rows], rows.new_empty(weights.shape[1], rows.shape[1])
            sends.append((peer, self._begin(dist.isend, outgoing, peer), outgoing))
            receives.append((peer, self._begin(dist.irecv, incoming, peer), incoming))
        mixed = route.local.to(rows) @ rows
        for (peer, work, incoming), (_, _, weights) in zip(receives, route.peers, strict=True):
            self._end(work, peer)
            mixed = mixed + weights.to(rows) @ incoming
        for peer, work, _ in sends:
            self._end(work, peer)
        return mixed

    def _to_server(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, bytes] at the server, from the [held, bytes] of all processes."""
        if self.rank != SERVER:
            self._end(self._begin(dist.isend, torch.from_numpy(packed), SERVER), SERVER)
            return packed
        arrived = torch.empty(self.agents, packed.shape[1], dtype=torch.uint8)
        arrived[self.blocks[SERVER]] = torch.from_numpy(packed)
        works = [
            (peer, self._begin(dist.irecv, arrived[block.start : block.stop], peer))
            for peer, block in enumerate(self.blocks)
            if peer != SERVER
        ]
        for peer, work in works:
            self._end(work, peer)
        return arrived.numpy()

    def _name(self, peer: int) -> str:
        block = self.blocks[peer]
        return f"process {peer} of {self.size} (agents {block.start} to {block.stop - 1})"

    def _begin(self, transfer: Transfer, tensor: torch.Tensor, peer: int) -> dist.Work | None:
        with _or_lost(self._name(peer)):
            return transfer(tensor, peer)

    def _end(self, work: dist.Work | None, peer: int) -> None:
        if work is not None:
            with _or_lost(self._name(peer)):
                work.wait()


class ProcessCheckpoints:
    """Checkpoints of a run over processes: each process saves its part; all resume from the last common step."""

    def __init__(self, folder: Path, network: Processes) -> None:
        self.network = network
        self.checkpoints = FolderCheckpoints(Path(folder) / f"process-{network.rank}-of-{network.size}")

    def save(self, step: int, tree: Tree) -> None:
        """Saves ``tree``; earlier checkpoints are removed once all processes have saved this one."""
        earlier = set(self.checkpoints.names()) - {str(step)}
        self.checkpoints.save(str(step), tree_flatten(tree)[0], {"metrics_bytes": 0, "seconds": 0.0})
        self.network.barrier()
        for name in earlier:
            (self.checkpoints.folder / f"{name}.pt").unlink()

    def last(self, like: Tree) -> tuple[int, Tree] | None:
        """(step, tree) of the last common checkpoint, or None; ``like`` has the structure of the tree."""
        common = set.intersection(*(set(names) for names in self.network.gather(self.checkpoints.names())))
        if not common:
            return None
        step = max(map(int, common))
        return step, tree_unflatten(self.checkpoints.load(str(step)), tree_flatten(like)[1])


def tcp_bytes() -> tuple[int, int]:
    """(sent, received) bytes of this process's open TCP connections to its peers, by the Linux kernel.

    Includes gloo's message headers. Excludes IP and TCP headers, retransmissions and torchrun's store.
    """
    sent = received = 0
    store = int(os.environ.get("MASTER_PORT", 0))
    for connection in _connections():
        try:
            ports = {connection.getsockname()[1], connection.getpeername()[1]}
        except OSError:  # listens
            continue
        if store not in ports:
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
            acknowledged, arrived = struct.unpack_from("=QQ", info, 120)  # tcpi_bytes_acked, tcpi_bytes_received
            sent, received = sent + acknowledged, received + arrived
    return sent, received


def _connections() -> Iterator[socket.socket]:
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with connection:
            if connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM:
                yield connection


def _polynomial(weights: torch.Tensor, mixings: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[float]]:
    """A W of ``mixings`` and the coefficients of the polynomial in W of lowest degree that equals ``weights``."""
    for W in mixings:
        goal = weights.to(W).flatten()[:, None]
        powers = [torch.linalg.matrix_power(W, k).flatten() for k in range(HIGHEST_POWER + 1)]
        for degree in range(HIGHEST_POWER + 1):
            basis = torch.stack(powers[: degree + 1], dim=1)
            coefficients = torch.linalg.lstsq(basis, goal, driver="gelsd").solution
            if (basis @ coefficients - goal).abs().max() < TOLERANCE:
                return W, coefficients.flatten().tolist()
    raise ValueError("weights: agents that are not neighbours would communicate; give the network their mixing matrix")


def _layout(message: Message) -> list[Field]:
    vectors = message.vectors
    return message.compressor.layout(vectors.shape[1], 8 * vectors.element_size())


def _decode(message: Message, fields: list[torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
    return message.compressor.decode(fields, message.vectors.shape[1], message.vectors.dtype, seeds)


@contextmanager
def _or_lost(peer: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo raises
        reason = str(error).splitlines()[0]
        raise ProcessLost(
            f"lost {peer}: start the same command again to go on from the last checkpoint ({reason})"
        ) from None
