# SPDX-License-Identifier: Apache-2.0
"""The principal part of a weight, which PiSSA's adapters begin with (Meng et al. 2024, arXiv 2404.02948)."""

import numpy as np

EXACT = -1
"""In place of a number of rounds: the singular value decomposition itself."""
_MORE = 8
"""Directions that the search carries along beyond the wanted ones (Halko, Martinsson, Tropp 2011, section 4.2)."""


def principal(weight: np.ndarray, r: int, rounds: int = EXACT, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A ``[in, r]`` and B ``[r, out]``, float32, whose product is the best approximation of ``weight`` [in, out].

    Each takes the square root of the ``r`` largest singular values. ``rounds`` of subspace iteration find them, with a
    start drawn by ``seed``; ``EXACT`` decomposes the weight, which takes minutes for one of 4096 x 11008. ``r`` is at
    most the smaller side. LinAlgError for a weight that is not finite.
    """
    weight = np.ascontiguousarray(weight, np.float32)
    if not np.isfinite(weight).all():
        raise np.linalg.LinAlgError("the weight is not finite")
    width = min(r + _MORE, *weight.shape)
    if rounds == EXACT or width == min(weight.shape):
        left, sizes, right = np.linalg.svd(weight, full_matrices=False)
    else:
        drawn = np.random.default_rng(seed).standard_normal([weight.shape[1], width]).astype(np.float32)
        basis = np.linalg.qr(weight @ drawn)[0]
        for _ in range(rounds):
            basis = np.linalg.qr(weight @ np.linalg.qr(weight.T @ basis)[0])[0]
        inner, sizes, right = np.linalg.svd(basis.T @ weight, full_matrices=False)
        left = basis @ inner
    roots = np.sqrt(sizes[:r])
    return left[:, :r] * roots, roots[:, None] * right[:r]
