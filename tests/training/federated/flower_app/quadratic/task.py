"""Client i has f_i(x) = ½ |x - c_i|², a centre of its own; NumPy alone, so that a client starts quickly."""

from __future__ import annotations

import numpy as np

SHAPES = {"matrix": (2, 2), "vector": (3,)}
Arrays = dict[str, np.ndarray]


def trained(arrays: Arrays, client: int, seed: int) -> Arrays:
    """After four noisy gradient steps."""
    rng, centre = np.random.default_rng(seed), np.random.default_rng(client)
    centres = {name: centre.normal(size=shape) for name, shape in SHAPES.items()}
    for _ in range(4):
        arrays = {
            name: array - 0.1 * (array - centres[name] + 0.1 * rng.normal(size=array.shape))
            for name, array in arrays.items()
        }
    return arrays
