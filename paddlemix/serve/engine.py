# SPDX-License-Identifier: Apache-2.0
"""The one thread that touches the model: questions in, events of their answers out.

It encodes one image or runs one step at a time, so that a question with many images does not hold up the others. A
model and the adapters over it have a batch each and share the slots: in every turn each batch with work does one step.
"""

import contextlib
import contextvars
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from paddlemix.generation.answers import AnswerReader
from paddlemix.generation.continuous import ContinuousBatch, Row
from paddlemix.generation.features import Picture
from paddlemix.generation.group import GroupLostError
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import TokenLogprob
from paddlemix.serve.clean import CleanText
from paddlemix.serve.faults import RequestError, failed, refused, unavailable
from paddlemix.serve.metrics import Metrics
from paddlemix.serve.question import Ended, Event, Failed, Piece, Question, Started, check_bias, fitted, prompt_of
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.logging import get_logger

Deliver = Callable[[list[Event]], None]
T = TypeVar("T")


@dataclass(eq=False)
class Job:
    """A question on its way. ``deliver`` is called by the engine's thread and must return at once."""

    question: Question
    deliver: Deliver
    arrived: float
    pictures: list[Picture] = field(default_factory=list)
    rows: "dict[Row, _Choice]" = field(default_factory=dict)
    closed: bool = False


@dataclass
class _Choice:
    """One answer of a job: how its ids are read, and what has not been delivered yet."""

    number: int
    reader: AnswerReader
    clean: CleanText = field(default_factory=CleanText)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    last: float | None = None


@dataclass
class _Lane:
    """A model that is asked, and the rows that it answers."""

    predictor: Predictor
    batch: ContinuousBatch


class Engine:
    """Owns the predictors. ``submit``, ``cancel``, ``call`` and ``stop`` may be called by any thread.

    ``slots`` answers are on their way at a time. ``waiting`` and ``running`` are counts for a person, one step old.
    ``adapters`` open a predictor over the one of ``load`` each; ``predictors`` has all by name, that of ``load`` as "".
    """

    def __init__(
        self,
        load: Callable[[], Predictor],
        *,
        slots: int,
        metrics: Metrics,
        adapters: Mapping[str, Callable[[Predictor], Predictor]] | None = None,
    ) -> None:
        self.slots = slots
        self.metrics = metrics
        self.waiting = self.running = 0
        self.fault: str | None = None
        self.at_fault: Callable[[], None] = lambda: None
        """Called by the engine's thread when it ends by itself (``fault``)."""
        self.predictors: dict[str, Predictor] = {}
        self._load = load
        self._adapters = dict(adapters or {})
        self._lanes: dict[str, _Lane] = {}
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._asked: deque[Job] = deque()
        self._jobs: dict[Row, Job] = {}
        self._stopping = False
        self._since: float | None = None
        self._ready: Future[Predictor] = Future()
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._run,), name="paddlemix-engine", daemon=True
        )

    def start(self) -> Predictor:
        """Load the model in the engine's thread and begin to serve; what the loading raises is raised here."""
        self.metrics.slots.set(self.slots)
        self._thread.start()
        return self._ready.result()

    def submit(self, question: Question, deliver: Deliver, arrived: float) -> Job:
        """Ask. Events come until an ``Ended`` for each choice, or one ``Failed``."""
        job = Job(question, deliver, arrived)
        self._commands.put(lambda: self._asked.append(job))
        if not self._thread.is_alive():
            deliver([Failed(unavailable("the model can no longer be asked", "engine_failed"))])
        return job

    def cancel(self, job: Job) -> None:
        """Nobody waits for the answer any more: no more events, and its slots are free before the next step."""
        self._commands.put(lambda: self._cancel(job))

    def call(self, work: Callable[[Predictor], T]) -> "Future[T]":
        """Run ``work`` between two steps, in the thread that may use the model."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work(self.predictors[""]))
            except Exception as error:  # noqa: BLE001 - handed to whoever waits
                done.set_exception(error)

        self._commands.put(run)
        return done

    def stop(self) -> None:
        """End the thread; what is open fails with 503."""
        self._commands.put(self._stop)

    def join(self, seconds: float) -> bool:
        """Wait for the thread to end; whether it did."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def stuck_seconds(self) -> float:
        """How long the present piece of work has taken."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        try:
            self._open()
        except BaseException as error:  # noqa: BLE001 - raised again by start()
            self._ready.set_exception(error)
            return
        self._ready.set_result(self.predictors[""])
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:  # noqa: BLE001 - /health tells it; the process goes on to say so
            self.fault = f"{type(error).__name__}: {error}"
            get_logger(__name__).exception("the engine has ended")
        finally:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._commands.get_nowait()()
            self._fail_all(unavailable("the model can no longer be asked", "engine_failed"))
            if self.fault is not None:
                self.at_fault()

    def _open(self) -> None:
        base = self._load()
        self.predictors = {"": base, **{name: load(base) for name, load in self._adapters.items()}}
        for predictor in self.predictors.values():  # all of them keep no more than one would
            predictor.features.max_bytes //= len(self.predictors)
            predictor.prefixes.max_bytes //= len(self.predictors)
        self._lanes = {name: _Lane(found, self._new_batch(found)) for name, found in self.predictors.items()}

    def _new_batch(self, predictor: Predictor) -> ContinuousBatch:
        return predictor.new_batch(self.slots, keep_answers=True)

    def _turn(self) -> None:
        """What has arrived, then one image or prompt, then one step."""
        self._since = None
        self._count()
        lanes = self._lanes.values()
        if not (self._asked or any(lane.batch.busy for lane in lanes)):
            self._commands.get()()
        with contextlib.suppress(queue.Empty):
            while True:
                self._commands.get_nowait()()
        self._since = time.monotonic()
        if self._asked and not any(lane.batch.waiting for lane in lanes):
            self._advance(self._asked[0])
        for lane in lanes:
            if lane.batch.busy:
                lane.batch.slots = self.slots - sum(other.batch.taken for other in lanes if other is not lane)
                self._step(lane.batch)
            elif len(lanes) > 1:
                lane.batch.rest()

    def _count(self) -> None:
        batches = [lane.batch for lane in self._lanes.values()]
        self.waiting = len(self._asked) + sum(batch.waiting for batch in batches)
        self.running = sum(batch.running for batch in batches)
        self.metrics.busy.set(self.running)

    def _advance(self, job: Job) -> None:
        """One more image of the job through the tower or, when all are, its rows into the batch."""
        question, done = job.question, len(job.pictures)
        try:
            if done < len(question.images):
                predictor = self.predictors[question.adapter]
                job.pictures.append(predictor.picture(question.images[done]))
                self.metrics.pictures(self.predictors.values())
                return
            self._enter(job)
        except RequestError as error:
            self._fail(job, error)
        except (ConfigError, DataError) as error:
            self._fail(job, refused(str(error), "messages"))
        except GroupLostError:
            raise
        except Exception:  # noqa: BLE001 - one request must not end the server
            get_logger(__name__).exception(f"{question.id}: the prompt failed")
            self._fail(job, failed(question.id))

    def _enter(self, job: Job) -> None:
        lane = self._lanes[job.question.adapter]
        predictor = lane.predictor
        prompt = prompt_of(predictor, job.question, job.pictures)
        decoding = fitted(predictor.decoding(job.question.decoding), prompt, predictor.context)
        check_bias(decoding, predictor.model.config.text.vocab_size)
        for number, draw in enumerate(job.question.draws):
            row = lane.batch.submit(prompt, decoding, draw)
            job.rows[row] = _Choice(number, predictor.reader(decoding))
            self._jobs[row] = job
        self._asked.remove(job)
        self.metrics.tokens.labels("prompt").inc(prompt.length)
        job.deliver([Started(prompt.length, sum(picture.length for picture in prompt.pictures))])

    def _step(self, batch: ContinuousBatch) -> None:
        try:
            new = batch.step()
        except GroupLostError:
            raise
        except Exception:  # noqa: BLE001 - the rows at fault fail, the others go on
            get_logger(__name__).exception("a step of the model failed")
            self._drop_faulty(batch)
            return
        self.metrics.step(len(new))
        now, found = time.monotonic(), {}
        for row, token in new:
            if row in self._jobs:
                job = self._jobs[row]
                found.setdefault(job, []).extend(self._read(job, row, token, now))
        for job, events in found.items():
            if events:
                job.deliver(events)
        for row in [row for row in self._jobs if row.error is not None]:
            if row in self._jobs:
                self._fail(self._jobs[row], unavailable(str(row.error), "not_finite"))

    def _drop_faulty(self, batch: ContinuousBatch) -> None:
        for row in batch.at_fault():
            batch.cancel(row)
            if row in self._jobs:
                self._fail(self._jobs[row], failed(self._jobs[row].question.id))

    def _read(self, job: Job, row: Row, token: int, now: float) -> list[Event]:
        """The events that one new id gives."""
        choice = job.rows[row]
        if choice.last is None:
            self.metrics.first_token.observe(now - job.arrived)
        else:
            self.metrics.between.observe(now - choice.last)
        choice.last = now
        text = choice.clean.put(choice.reader.put(token))
        if row.sampler.logprobs and token not in row.decoding.ends:
            # A step can give a row two ids: that of its prompt, and the next one.
            choice.logprobs.append(row.sampler.logprobs[len(choice.reader.ids) - 1])
        ended = choice.reader.finish is not None
        if ended:
            text += choice.clean.end()
        events: list[Event] = []
        if text or (ended and choice.logprobs):
            events.append(Piece(choice.number, text, tuple(choice.logprobs)))
            choice.logprobs = []
        if ended:
            events.append(self._end(job, row, choice))
        return events

    def _end(self, job: Job, row: Row, choice: _Choice) -> Ended:
        self._lanes[job.question.adapter].batch.cancel(row)
        self._forget(job, row)
        self.metrics.reused.inc(row.reused)
        self.metrics.run.inc(row.prompt.length - row.reused)
        finish = "length" if choice.reader.finish == "length" else "stop"
        return Ended(choice.number, finish, len(choice.reader.ids), row.reused)

    def _forget(self, job: Job, row: Row) -> None:
        del self._jobs[row], job.rows[row]
        job.closed = not job.rows

    def _cancel(self, job: Job) -> None:
        if job.closed:
            return
        self.metrics.cancelled.inc()
        self._drop(job)

    def _drop(self, job: Job) -> None:
        for row in list(job.rows):
            self._lanes[job.question.adapter].batch.cancel(row)
            self._forget(job, row)
        if job in self._asked:
            self._asked.remove(job)
        job.closed = True

    def _fail(self, job: Job, error: RequestError) -> None:
        self._drop(job)
        job.deliver([Failed(error)])

    def _fail_all(self, error: RequestError) -> None:
        for job in [*self._asked, *dict.fromkeys(self._jobs.values())]:
            job.closed = True
            job.deliver([Failed(error)])
        self._asked.clear()
        self._jobs.clear()

    def _stop(self) -> None:
        self._stopping = True
        self._fail_all(unavailable("the server is going down", "shutting_down"))
