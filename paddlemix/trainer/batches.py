# SPDX-License-Identifier: Apache-2.0
"""Which rows of the data set meet in which batch of which process, and how a resumed run finds its place."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import paddle

from paddlemix.datasets.sampler import EpochOrder
from paddlemix.utils.constants import IGNORE_INDEX

Batch = dict[str, np.ndarray]
Collate = Callable[[list[Any]], Batch]


def split_batches(
    order: Sequence[int],
    batch_size: int,
    *,
    rank: int = 0,
    world: int = 1,
    accumulate: int = 1,
    drop_last: bool = False,
) -> list[list[int]]:
    """Batches of process ``rank`` for one epoch, each a list of row indices.

    Consecutive rows form a batch, consecutive batches go to the processes in turn. The epoch is filled up to whole
    optimizer steps (``world * accumulate`` batches) with batches from its beginning, so every row is seen at least
    once and no gradient is left over at its end.
    """
    batches = [list(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
    if drop_last and len(batches) > 1 and len(batches[-1]) < batch_size:
        batches.pop()
    count = len(batches)
    unit = world * accumulate
    filled = [batches[index % count] for index in range(math.ceil(count / unit) * unit)] if count else []
    return filled[rank::world]


class TrainBatches:
    """Iterable over the batches of one epoch after the other; the epoch number advances with each pass.

    After ``resume(batches)`` the next pass begins in the epoch where the run stopped and gives an empty dict for every
    batch that was trained already: nothing is read or decoded for them. The Trainer counts them and goes on.
    """

    def __init__(
        self,
        dataset: Any,
        collate: Collate,
        order: EpochOrder,
        *,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.order = order
        self.workers = workers
        rows = len(dataset)
        per_rank = math.ceil(_count(rows, batch_size, drop_last) / world)
        # A set smaller than one optimizer step makes a smaller step and is not repeated within it.
        self.accumulate = max(1, min(accumulate, per_rank))
        self._shape = dict(
            batch_size=batch_size, rank=rank, world=world, accumulate=self.accumulate, drop_last=drop_last
        )
        self._length = math.ceil(per_rank / self.accumulate) * self.accumulate
        self.epoch = 0
        self.skip = 0
        self.recent: list[list[int]] = []

    def __len__(self) -> int:
        """Batches of this process in one epoch."""
        return self._length

    def resume(self, batches: int) -> None:
        """Go on after ``batches`` batches of this process, counted from the beginning of the run."""
        self.epoch, self.skip = divmod(batches, max(1, self._length))

    def __iter__(self) -> Iterator[Batch]:
        plan = split_batches(self.order(self.epoch), **self._shape)
        skip, self.skip = self.skip, 0
        self.epoch += 1
        for _ in range(skip):
            yield {}
        todo = plan[skip:]
        for indices, batch in zip(todo, load_batches(self.dataset, self.collate, todo, self.workers), strict=True):
            self.recent = [*self.recent[1 - self.accumulate :], indices] if self.accumulate > 1 else [indices]
            yield batch

    def describe_recent(self) -> str:
        """The rows of the last optimizer step, as the data set names them."""
        indices = [index for batch in self.recent for index in batch]
        where = getattr(self.dataset, "where", None)
        names = [where(index) if callable(where) else f"row {index}" for index in indices[:8]]
        return ", ".join(names) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def load_batches(dataset: Any, collate: Collate, plan: list[list[int]], workers: int) -> Iterator[Batch]:
    """Batches as numpy arrays, in the order of ``plan``. Worker processes see numpy only: paddle tensors made in a
    worker end in a segmentation fault now and then (measured with paddle 3.3)."""
    if workers == 0 or not plan:
        for indices in plan:
            yield collate([dataset[index] for index in indices])
        return
    loader = paddle.io.DataLoader(
        _Rows(dataset), batch_sampler=plan, collate_fn=collate, num_workers=workers, return_list=True
    )
    for batch in loader:
        yield {name: value.numpy() for name, value in batch.items()}


class _Rows(paddle.io.Dataset):
    """A map-style data set in the class that paddle's loader asks for."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)


def _count(rows: int, batch_size: int, drop_last: bool) -> int:
    return max(1, rows // batch_size) if drop_last else math.ceil(rows / batch_size)


def fingerprint(dataset: Any) -> str:
    """What tells one set of training rows from another."""
    return str(getattr(dataset, "fingerprint", None) or f"{len(dataset)} rows")


def count_labels(batch: Batch) -> int:
    """Positions of a batch that the loss is a mean over (the first column predicts nothing)."""
    labels = batch["labels"]
    learnt = labels[:, 1:] != IGNORE_INDEX
    if batch.get("segments") is not None:
        learnt &= batch["segments"][:, 1:] == batch["segments"][:, :-1]
    return int(np.count_nonzero(learnt))


def count_tokens(batch: Batch) -> int:
    """Merged positions of a batch that are not padding: image rows and text."""
    if batch.get("segments") is not None:
        return int(np.count_nonzero(batch["segments"]))
    # Positions count from 0 in every row and are 0 on padding.
    return int((batch["positions"].max(axis=1) + 1).sum())
