"""Partitions of labelled examples among clients."""

from __future__ import annotations

import numpy as np


def dirichlet(
    labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator, *, minimum: int = 1, attempts: int = 100
) -> list[np.ndarray]:
    """Splits each class among the clients by shares from a Dirichlet(alpha). Clients differ more for smaller alpha.

    ``labels`` [n]; returns the indices of each client, ascending, each index once. As in the official code of FADAS,
    but repeated until every client has ``minimum`` examples. Raises ValueError if ``attempts`` draws do not suffice.
    """
    for _ in range(attempts):
        owner = np.empty(len(labels), dtype=int)
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            cuts = (np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(members)).astype(int)
            for client, part in enumerate(np.split(members, cuts)):
                owner[part] = client
        if np.bincount(owner, minlength=clients).min() >= minimum:
            return [np.flatnonzero(owner == client) for client in range(clients)]
    raise ValueError(
        f"no split of {len(labels)} examples gave each of {clients} clients {minimum}: fewer clients, or a larger alpha"
    )
