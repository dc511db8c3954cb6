"""Agents in processes of their own, on one machine or several, over torch.distributed's gloo.

Start the same script everywhere with ``torchrun``; each process holds a block of agents. Neighbours exchange rows with
neighbours and nobody else; compressed messages travel as ``packing`` makes them.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils._pytree import tree_flatten, tree_unflatten

from training.bilevel.compressors import draw_seeds
from training.bilevel.network import Average, Message
from training.bilevel.packing import pack, packed_bytes, unpack
from training.bilevel.problem import Tree
from training.checkpoints import FolderCheckpoints

SERVER = 0
FURTHEST = 2  # powers of W that strategies have
TOLERANCE = 1e-10


class ProcessLost(ConnectionError):
    """Another process has ended, or has been silent for too long."""


class Peer(NamedTuple):
    """A neighbouring process: which of our rows it wants, and the weights [held, k] of the k of its that we hear."""

    rank: int
    wanted: list[int]
    heard: torch.Tensor


class Route(NamedTuple):
    """One multiplication by W: own [held, held] weighs what is held here."""

    own: torch.Tensor
    peers: list[Peer]


class Plan(NamedTuple):
    """Weights as a polynomial Σ_k coefficients[k] W^k, so that neighbours in W alone need to talk."""

    route: Route
    coefficients: list[float]


class Processes:
    """A ``Network`` of ``agents``, in equal blocks over the processes that torchrun started.

    ``mixings``: the W [n, n] of each topology in use; all weights to mix by are polynomials of one of them, and a power
    takes a round. ``timeout``: seconds of silence after which a process counts as lost, and methods raise ProcessLost.
    """

    def __init__(self, agents: int, mixings: Sequence[torch.Tensor] = (), timeout: float = 300.0) -> None:
        """ValueError if there are more processes than agents, or a W of another number of agents."""
        for W in mixings:
            if len(W) != agents:
                raise ValueError(f"mixing matrix: is of {len(W)} agents; make it {agents}")
        with _or_lost("the others"):
            dist.init_process_group("gloo", timeout=timedelta(seconds=timeout))
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size > agents:
            self.close()
            raise ValueError(f"{agents} agents cannot fill {self.size} processes; start at most one an agent")
        self.blocks = [range(agents * i // self.size, agents * (i + 1) // self.size) for i in range(self.size)]
        self.agents, self.mixings = agents, list(mixings)
        self._plans: dict[int, tuple[torch.Tensor, Plan]] = {}
        self.meet()  # connects all of them, so that from now on traffic is that of the algorithm

    def close(self) -> None:
        dist.destroy_process_group()

    def held(self, agents: int) -> range:
        if agents != self.agents:
            raise ValueError(f"the network has {self.agents} agents, the algorithm {agents}: make them equal")
        return self.blocks[self.rank]

    def mix(self, weights: torch.Tensor, tree: Tree) -> Tree:
        """ValueError if ``weights`` are no polynomial of a W that this network was made with."""
        route, (own, *others) = self._plan(weights)
        leaves, spec = tree_flatten(tree)
        rows = torch.cat([leaf.reshape(len(leaf), -1) for leaf in leaves], dim=1)
        total = own * rows
        for coefficient in others:
            rows = self._hear(route, rows)
            total = total + coefficient * rows
        parts = total.split([leaf[0].numel() for leaf in leaves], dim=1)
        return tree_unflatten([part.view_as(leaf).to(leaf) for part, leaf in zip(parts, leaves, strict=True)], spec)

    def average(self, messages: Sequence[Message], generator: torch.Generator) -> list[Average]:
        """Workers send to the server's process what compressors encode; it sends back the means, uncompressed."""
        seeds = [draw_seeds(self.agents, generator) for _ in messages]
        own = self.blocks[self.rank]
        encoded = [
            message.compressor.encode(message.vectors, each[own]) for message, each in zip(messages, seeds, strict=True)
        ]
        packed = [pack(fields, _layout(message)) for message, fields in zip(messages, encoded, strict=True)]
        arrived = self._to_server(np.concatenate(packed, axis=1))
        means = [message.vectors.new_zeros(message.vectors.shape[1]) for message in messages]
        if self.rank == SERVER:
            ends = np.cumsum([packed_bytes(_layout(message)) for message in messages])[:-1]
            means = [
                _decode(message, unpack(part, _layout(message), message.vectors.dtype), each).mean(0)
                for message, part, each in zip(messages, np.split(arrived, ends, axis=1), seeds, strict=True)
            ]
        joined = torch.cat(means)
        with _or_lost("the server" if self.rank != SERVER else "a worker"):
            dist.broadcast(joined, SERVER)
        means = [part.to(mean) for part, mean in zip(joined.split([len(mean) for mean in means]), means, strict=True)]
        sent = [
            _decode(message, fields, each[own]) for message, fields, each in zip(messages, encoded, seeds, strict=True)
        ]
        return [Average(*each) for each in zip(means, sent, strict=True)]

    def meet(self) -> None:
        """Wait until all processes are here."""
        with _or_lost("another process"):
            dist.barrier()

    def gather(self, value: Any) -> list[Any]:
        """What each process has, to all of them. For beginnings and ends: this one is not neighbour to neighbour."""
        values: list[Any] = [None] * self.size
        with _or_lost("another process"):
            dist.all_gather_object(values, value)
        return values

    def _plan(self, weights: torch.Tensor) -> Plan:
        if id(weights) not in self._plans:
            W, coefficients = _polynomial(weights, self.mixings)
            self._plans[id(weights)] = weights, Plan(self._route(W), coefficients)
        return self._plans[id(weights)][1]

    def _route(self, W: torch.Tensor) -> Route:
        own, peers = list(self.blocks[self.rank]), []
        for peer, block in enumerate(self.blocks):
            theirs = list(block)
            wanted = [at for at, j in enumerate(own) if W[theirs, j].any()]
            needed = [j for j in theirs if W[own, j].any()]
            if peer != self.rank and (wanted or needed):
                peers.append(Peer(peer, wanted, W[own][:, needed]))
        return Route(W[own][:, own], peers)

    def _hear(self, route: Route, rows: torch.Tensor) -> torch.Tensor:
        """W times the rows [held, d] of all agents, for those held here."""
        sends, hears = [], []
        for peer, wanted, heard in route.peers:
            outgoing, incoming = rows[wanted], rows.new_empty(heard.shape[1], rows.shape[1])
            sends.append((peer, self._begin(dist.isend, outgoing, peer), outgoing))
            hears.append((peer, self._begin(dist.irecv, incoming, peer), incoming))
        mixed = route.own.to(rows) @ rows
        for (peer, work, incoming), (_, _, heard) in zip(hears, route.peers, strict=True):
            self._end(work, peer)
            mixed = mixed + heard.to(rows) @ incoming
        for peer, work, _ in sends:
            self._end(work, peer)
        return mixed

    def _to_server(self, packed: np.ndarray) -> np.ndarray:
        """uint8 [n, bytes] at the server, of what processes hold [held, bytes]."""
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

    def _begin(self, start: Callable[..., Any], tensor: torch.Tensor, peer: int) -> Any:
        with _or_lost(self._name(peer)):
            return start(tensor, peer)

    def _end(self, work: Any, peer: int) -> None:
        with _or_lost(self._name(peer)):
            work.wait()


class Shards:
    """The checkpoints of a run over processes: each keeps its own, and all go on from the last that all have."""

    def __init__(self, folder: Path, network: Processes) -> None:
        self.network = network
        self.kept = FolderCheckpoints(Path(folder) / f"process-{network.rank}-of-{network.size}")

    def save(self, step: int, tree: Tree) -> None:
        """``tree`` of tensors; earlier ones are removed once all processes have this one."""
        earlier = set(self.kept.names()) - {str(step)}
        self.kept.save(str(step), tree_flatten(tree)[0], {"metrics_bytes": 0, "seconds": 0.0})
        self.network.meet()
        for name in earlier:
            (self.kept.folder / f"{name}.pt").unlink()

    def last(self, like: Tree) -> tuple[int, Tree] | None:
        """(step, tree) to go on from; ``like`` has the tree's structure."""
        common = set.intersection(*(set(names) for names in self.network.gather(self.kept.names())))
        if not common:
            return None
        step = max(map(int, common))
        return step, tree_unflatten(self.kept.load(str(step)), tree_flatten(like)[1])


def tcp_bytes() -> tuple[int, int]:
    """(sent, received) by this process's open TCP connections to its peers, as Linux counted them.

    With what gloo puts before each message; without IP and TCP headers, retransmissions, and torchrun's own store.
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
            acknowledged, got = struct.unpack_from("=QQ", info, 120)  # tcpi_bytes_acked, tcpi_bytes_received
            sent, received = sent + acknowledged, received + got
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
    """A W of ``mixings``, and the coefficients of its powers that make ``weights``, as few of them as do."""
    for W in mixings:
        goal = weights.to(W).flatten()[:, None]
        powers = [torch.linalg.matrix_power(W, k).flatten() for k in range(FURTHEST + 1)]
        for degree in range(FURTHEST + 1):
            basis = torch.stack(powers[: degree + 1], dim=1)
            found = torch.linalg.lstsq(basis, goal, driver="gelsd").solution
            if (basis @ found - goal).abs().max() < TOLERANCE:
                return W, found.flatten().tolist()
    raise ValueError("weights: agents who are no neighbours would have to talk; give the network their mixing matrix")


def _layout(message: Message) -> list[Any]:
    vectors = message.vectors
    return message.compressor.layout(vectors.shape[1], 8 * vectors.element_size())


def _decode(message: Message, fields: list[torch.Tensor], seeds: torch.Tensor) -> torch.Tensor:
    return message.compressor.decode(fields, message.vectors.shape[1], message.vectors.dtype, seeds)


@contextmanager
def _or_lost(whom: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # all that gloo raises
        reason = str(error).splitlines()[0]
        raise ProcessLost(
            f"lost {whom}: start the same command again to go on from the last checkpoint ({reason})"
        ) from None
