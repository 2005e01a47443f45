# SPDX-License-Identifier: Apache-2.0
"""Collectives of the stand-in in groups of two of four processes."""

from pathlib import Path

import numpy as np
import pytest

from tests.npu_standin import build

pytestmark = [pytest.mark.npu_standin, pytest.mark.dist]

GROUPS = {"near": [[0, 1], [2, 3]], "far": [[0, 2], [1, 3]]}


def own(rank: int) -> np.ndarray:
    return np.array([rank + 1, -rank, 10 * rank, 3.0])


def test_near_and_far_groups_exchange_within_themselves(standin: Path, tmp_path: Path) -> None:
    everyone = build.launch(standin, tmp_path, "groups_worker.py", devices=4)
    for name, divided in GROUPS.items():
        for ranks in divided:
            first, second = (own(rank) for rank in ranks)
            total = (first + second).tolist()
            for rank in ranks:
                last = rank == ranks[1]
                wanted = {
                    "SUM": total,
                    "MAX": np.maximum(first, second).tolist(),
                    "all_gather": [*first, *second],
                    "broadcast": second.tolist(),
                    "reduce": total if last else [],
                    "reduce_scatter": total[2:] if last else total[:2],
                    "send": first.tolist(),
                }
                assert everyone[rank][name] == dict.fromkeys(("float32", "bfloat16", "int64"), wanted)
