# SPDX-License-Identifier: Apache-2.0
"""Which rows of the data set meet in which batch of which process, and how a resumed run finds its place."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from paddlemix.datasets.preprocess import Encoded, Rows
from paddlemix.datasets.sampler import EpochOrder
from paddlemix.settings.run.training import TrainingGroup
from paddlemix.trainer.workers import read_batches
from paddlemix.utils.constants import IGNORE_INDEX
from paddlemix.utils.errors import PaddleMixError

Batch = dict[str, np.ndarray]
Collate = Callable[[list[Encoded | None]], Batch]


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


def step_counts(
    rows: int, batch_size: int, *, world: int = 1, accumulate: int = 1, drop_last: bool = False
) -> tuple[int, int]:
    """(batches of one process in an epoch, micro-batches of an optimizer step) for a set of ``rows``.

    A set smaller than one optimizer step makes a smaller step and is not repeated within it.
    """
    per_rank = math.ceil(_count(rows, batch_size, drop_last) / world)
    step = max(1, min(accumulate, per_rank))
    return math.ceil(per_rank / step) * step, step


def total_steps(training: TrainingGroup, rows: int, world: int = 1) -> int:
    """Optimizer steps of a whole run over so many rows."""
    if training.max_steps > 0:
        return training.max_steps
    batches, step = step_counts(
        rows,
        training.per_device_train_batch_size,
        world=world,
        accumulate=training.gradient_accumulation_steps,
        drop_last=training.dataloader_drop_last,
    )
    return int(max(1, batches // step) * training.num_train_epochs)


class TrainBatches:
    """Iterable over the batches of one epoch after the other; the epoch number advances with each pass.

    After ``resume(batches)`` the next pass begins in the epoch where the run stopped and gives an empty dict for every
    batch that was trained already: nothing is read or decoded for them. The Trainer counts them and goes on.

    A batch that cannot be read does not raise here: ``failed`` holds the error, and what follows are batches without
    rows, whose gradients are zero. Several processes can so agree to stop before the next update (``LlavaTrainer``).
    """

    def __init__(
        self,
        dataset: Rows,
        collate: Collate,
        order: EpochOrder,
        *,
        batch_size: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        timeout: float = 600.0,
        drop_last: bool = False,
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.order = order
        self.workers = workers
        self.timeout = timeout
        self.failed: PaddleMixError | None = None
        self._length, self.accumulate = step_counts(
            len(dataset), batch_size, world=world, accumulate=accumulate, drop_last=drop_last
        )
        self._shape = dict(
            batch_size=batch_size, rank=rank, world=world, accumulate=self.accumulate, drop_last=drop_last
        )
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
        batches = load_batches(self.dataset, self.collate, todo, self.workers, self.timeout)
        for indices, batch in zip(todo, filled_up(batches, len(todo), self.collate, self._note), strict=True):
            self.recent = [*self.recent[1 - self.accumulate :], indices] if self.accumulate > 1 else [indices]
            yield batch

    def _note(self, error: PaddleMixError) -> None:
        self.failed = error

    def describe_recent(self) -> str:
        """The rows of the last optimizer step, as the data set names them."""
        indices = [index for batch in self.recent for index in batch]
        names = [row_name(self.dataset, index) for index in indices[:8]]
        return ", ".join(names) + (f" and {len(indices) - 8} more" if len(indices) > 8 else "")


def load_batches(
    dataset: Rows, collate: Collate, plan: list[list[int]], workers: int, timeout: float = 600.0
) -> Iterator[Batch]:
    """Batches as numpy arrays, in the order of ``plan``; ``timeout`` in seconds is for worker processes.

    Those see numpy only: paddle tensors made in a worker end in a segmentation fault now and then (paddle 3.3).
    """
    if workers == 0 or not plan:
        for indices in plan:
            yield collate([dataset[index] for index in indices])
        return
    with contextlib.closing(
        read_batches(dataset, collate, plan, workers, timeout=timeout, where=lambda index: row_name(dataset, index))
    ) as batches:
        yield from batches


def filled_up(
    batches: Iterator[Batch], count: int, collate: Collate, note: Callable[[PaddleMixError], None]
) -> Iterator[Batch]:
    """``count`` batches: after one that cannot be read (``note`` gets its error) those without rows.

    Processes that compute together stay in step that way until they agree to stop.
    """
    failed = False
    for _ in range(count):
        batch = None
        if not failed:
            try:
                batch = next(batches)
            except PaddleMixError as error:
                failed = True
                note(error)
        yield collate([]) if batch is None else batch


def row_name(dataset: Rows, index: int) -> str:
    """A row as the data set names it."""
    where = getattr(dataset, "where", None)
    return where(index) if callable(where) else f"row {index}"


def _count(rows: int, batch_size: int, drop_last: bool) -> int:
    return max(1, rows // batch_size) if drop_last else math.ceil(rows / batch_size)


def fingerprint(dataset: Rows) -> str:
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
