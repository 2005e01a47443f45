# SPDX-License-Identifier: Apache-2.0
"""One of four processes that talk in groups of two, near and far: ``groups_worker.py FOLDER DEVICE``."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

GROUPS = {"near": [[0, 1], [2, 3]], "far": [[0, 2], [1, 3]]}
DTYPES = ("float32", "bfloat16", "int64")


def own(rank: int, dtype: str) -> paddle.Tensor:
    """Four numbers that tell the process."""
    return paddle.to_tensor(np.array([rank + 1, -rank, 10 * rank, 3]), dtype="int64").astype(dtype)


def plain(tensor: paddle.Tensor) -> list[float]:
    """The numbers of a tensor of any dtype."""
    return tensor.astype("float32").numpy().reshape(-1).tolist()


def talk(group: Any, ranks: list[int], dtype: str) -> dict[str, list[float]]:
    """What every collective gives this process."""
    rank = dist.get_rank()
    found = {}
    for name in ("SUM", "MAX"):
        mine = own(rank, dtype)
        dist.all_reduce(mine, op=getattr(dist.ReduceOp, name), group=group)
        found[name] = plain(mine)
    parts: list[paddle.Tensor] = []
    dist.all_gather(parts, own(rank, dtype), group=group)
    found["all_gather"] = [number for part in parts for number in plain(part)]
    mine = own(rank, dtype)
    dist.broadcast(mine, src=ranks[1], group=group)
    found["broadcast"] = plain(mine)
    mine = own(rank, dtype)
    dist.reduce(mine, dst=ranks[1], group=group)
    found["reduce"] = plain(mine) if rank == ranks[1] else []
    half = paddle.zeros([2], dtype=dtype)
    dist.reduce_scatter(half, [part.reshape([2]) for part in own(rank, dtype).reshape([2, 2])], group=group)
    found["reduce_scatter"] = plain(half)
    other = own(rank, dtype)
    if rank == ranks[0]:
        dist.send(other, dst=ranks[1], group=group)
    else:
        dist.recv(other, src=ranks[0], group=group)
    found["send"] = plain(other)
    return found


def main(folder: Path, device: str) -> None:
    """Every group and dtype; the first process writes what all of them found."""
    paddle.set_device(device)
    dist.init_parallel_env()
    rank, found = dist.get_rank(), {}
    for name, divided in GROUPS.items():
        made = [(dist.new_group(ranks), ranks) for ranks in divided]  # every process makes every group
        group, ranks = next(item for item in made if rank in item[1])
        found[name] = {dtype: talk(group, ranks, dtype) for dtype in DTYPES}
    everyone: list[Any] = []
    dist.all_gather_object(everyone, found)
    if rank == 0:
        (folder / "told.json").write_text(json.dumps(everyone), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
