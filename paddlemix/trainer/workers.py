# SPDX-License-Identifier: Apache-2.0
"""Processes that read and collate batches beside the training.

Why not paddle's DataLoader: its workers die of a signal that is meant for the run, outlive a killed run with its lock
in their hands, turn an error about a row into a traceback, and wait for ever when one of them hangs or is stopped.
Here a worker ignores the signals of the run, ends with it, hands over the project's own errors as they are, and is
watched: the row that it reads is known, and so is when it began.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, MutableSequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from multiprocessing.util import Finalize

import numpy as np

from paddlemix.datasets.preprocess import Encoded, Rows
from paddlemix.utils.errors import PaddleMixError, TrainingError
from paddlemix.utils.forks import end_with_parent

Batch = dict[str, np.ndarray]

AHEAD = 2
"""Batches that a worker prepares before the first of them is taken."""

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name))
"""Signals that end a run; a job manager sends them to all of its processes, and the main one decides what follows."""

_POLL = 1.0
_NONE = -1
_BUFFER = 1 << 20


@dataclass
class _Worker:
    """One process as the main one sees it.

    Its batches go through the files ``slots`` in turn, whose handles both processes have; the pipe tells when one is
    full or free. ``progress`` holds the number of rows begun, and the row that is read.
    """

    number: int
    process: BaseProcess
    pipe: Connection
    slots: list[int]
    progress: MutableSequence[int]
    taken: int = 0


def read_batches(
    dataset: Rows,
    collate: Callable[[list[Encoded | None]], Batch],
    plan: list[list[int]],
    workers: int,
    *,
    timeout: float,
    where: Callable[[int], str],
) -> Iterator[Batch]:
    """The batches of ``plan`` in their order, prepared by ``workers`` processes.

    An error of the project that a row raises is raised here as it is. TrainingError when a worker died, or when it made
    no progress for ``timeout`` seconds: it names the row, by ``where``. All processes are gone when the iterator is.
    """
    team = _start(dataset, collate, plan, min(workers, len(plan)))
    end = Finalize(None, _end, args=(team,), exitpriority=100)  # before multiprocessing waits for its children
    try:
        for index in range(len(plan)):
            yield _take(team[index % len(team)], timeout, where)
    finally:
        end()


def _start(
    dataset: Rows, collate: Callable[[list[Encoded | None]], Batch], plan: list[list[int]], count: int
) -> list[_Worker]:
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe() for _ in range(count)]
    team = []
    # A signal between the fork and the child's first line would be handled as if the child were the run.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        for number, (own, theirs) in enumerate(pipes):
            slots, progress = [_nameless_file(number) for _ in range(AHEAD)], RawArray("q", [0, _NONE])
            others = [end for pair in pipes for end in pair if end is not theirs]
            job = (os.getpid(), theirs, others, slots, progress, dataset, collate, plan[number::count])
            process = context.Process(target=_work, args=job, daemon=True, name=f"data worker {number}")
            process.start()
            team.append(_Worker(number, process, own, slots, progress))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for _, theirs in pipes:
        theirs.close()
    return team


def _nameless_file(number: int) -> int:
    """Handle of a file that nothing can be left behind of; in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"batches of data worker {number}")
    with tempfile.TemporaryFile() as stream:
        return os.dup(stream.fileno())


def _end(team: list[_Worker]) -> None:
    for worker in team:
        worker.process.kill()  # nothing of theirs needs an orderly end, and they ignore the gentler signals
    for worker in team:
        worker.process.join()
        worker.pipe.close()
        for slot in worker.slots:
            os.close(slot)


# The main process


def _take(worker: _Worker, timeout: float, where: Callable[[int], str]) -> Batch:
    """The next batch of a worker. It may fill the slot again from then on."""
    _wait(worker, timeout, where)
    slot = worker.slots[worker.taken % AHEAD]
    worker.taken += 1
    with open(slot, "rb", buffering=_BUFFER, closefd=False) as stream:  # anew each time: a buffer would be stale
        stream.seek(0)
        content = pickle.load(stream)  # noqa: S301 - written by our own child
    if isinstance(content, PaddleMixError):
        raise content
    with contextlib.suppress(BrokenPipeError):  # it has ended after its last batch
        worker.pipe.send_bytes(b"+")
    return content


def _wait(worker: _Worker, timeout: float, where: Callable[[int], str]) -> None:
    """Until the worker's next batch is there. TrainingError when it will not come."""
    began, seen = time.monotonic(), worker.progress[0]
    while True:
        ready = wait([worker.pipe, worker.process.sentinel], _POLL)
        if worker.pipe in ready:
            with contextlib.suppress(EOFError, ConnectionResetError):
                worker.pipe.recv_bytes()
                return
        if ready:
            worker.process.join()
            raise TrainingError(f"{_named(worker, where)} {_how_ended(worker.process.exitcode)}")
        now = time.monotonic()
        if worker.progress[0] != seen:
            began, seen = now, worker.progress[0]
        elif now - began >= timeout:
            raise TrainingError(
                f"{_named(worker, where)} has made no progress for {now - began:.0f} s (dataloader_timeout is "
                f"{timeout:g}): look at the file and at the disk it lies on, or raise dataloader_timeout"
            )


def _named(worker: _Worker, where: Callable[[int], str]) -> str:
    row = int(worker.progress[1])
    place = f", at {where(row)}," if row != _NONE else ""
    return f"data worker {worker.number} (process {worker.process.pid}){place}"


def _how_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"failed (exit code {code}); its traceback stands above"
    name = signal.Signals(-code).name
    if name != "SIGKILL":
        return f"was ended by {name}: look at this row's file, or leave the row out"
    return (
        "was ended by SIGKILL, as the system does when memory runs out: lower dataloader_num_workers or "
        "per_device_train_batch_size"
    )


# A worker


def _work(
    parent: int,
    pipe: Connection,
    others: list[Connection],
    slots: list[int],
    progress: MutableSequence[int],
    dataset: Rows,
    collate: Callable[[list[Encoded | None]], Batch],
    plan: list[list[int]],
) -> None:
    """Everything a worker does: batches until the plan is done, an error, or the end of the run."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent(parent)
    for end in others:
        end.close()
    with contextlib.suppress(BrokenPipeError, EOFError, ConnectionResetError):  # nobody takes batches any more
        for number, indices in enumerate(plan):
            if number >= AHEAD:
                pipe.recv_bytes()  # the slot is free again
            content = _prepared(dataset, collate, indices, progress)
            with open(slots[number % AHEAD], "wb", buffering=_BUFFER, closefd=False) as stream:
                stream.seek(0)
                pickle.dump(content, stream, protocol=5)
            pipe.send_bytes(b".")
            if isinstance(content, PaddleMixError):
                return


def _prepared(
    dataset: Rows, collate: Callable[[list[Encoded | None]], Batch], indices: list[int], progress: MutableSequence[int]
) -> Batch | PaddleMixError:
    """The batch, or the project's error about one of its rows. Other errors end the worker with their traceback."""
    items = []
    try:
        for index in indices:
            progress[1] = index
            progress[0] += 1
            items.append(dataset[index])
        return collate(items)
    except PaddleMixError as error:
        return error
    finally:
        progress[0] += 1
