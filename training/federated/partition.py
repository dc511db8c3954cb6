"""Who has which examples."""

from __future__ import annotations

import numpy as np


def dirichlet(
    labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator, *, least: int = 1, attempts: int = 100
) -> list[np.ndarray]:
    """Each class is split among the clients by shares from a Dirichlet(alpha): a small alpha makes clients differ.

    ``labels`` [n]; gives each client's indices into them, ascending, each index once. As in the official code of FADAS,
    but drawn again until every client has ``least`` examples. Raises ValueError if none of ``attempts`` draws does.
    """
    for _ in range(attempts):
        owner = np.empty(len(labels), dtype=int)
        for each in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == each))
            cuts = (np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1] * len(members)).astype(int)
            for client, part in enumerate(np.split(members, cuts)):
                owner[part] = client
        if np.bincount(owner, minlength=clients).min() >= least:
            return [np.flatnonzero(owner == client) for client in range(clients)]
    raise ValueError(
        f"no split of {len(labels)} examples gave each of {clients} clients {least}: fewer clients, or a larger alpha"
    )
