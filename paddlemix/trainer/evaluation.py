# SPDX-License-Identifier: Apache-2.0
"""Evaluation during a run and after it."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor

from paddlemix.datasets.preprocess import Rows
from paddlemix.trainer.arguments import readers_together
from paddlemix.trainer.asking import Asks
from paddlemix.trainer.batches import Batch, count_labels, filled_up, load_batches, split_batches
from paddlemix.trainer.library import ShardingOption
from paddlemix.trainer.sample_answers import SampleAnswers
from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.logging import get_logger


class BrokenOffError(Exception):
    """A signal came during an evaluation: the processes have agreed to leave it."""


class Evaluation:
    """The part of the trainer that evaluates; everything it uses belongs to PaddleNLP's Trainer or to ours."""

    sample_answers: SampleAnswers | None = None
    """What asks rows of the eval data at each evaluation; None: none are asked."""
    asks: Asks | None = None
    """What asks benchmarks at each evaluation, and test rows at the end; None: nothing is asked."""

    def evaluate(
        self, eval_dataset: Rows | None = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean loss over all labels of the eval data: the same number for every batch size and process count.

        Without eval data the benchmarks alone (``eval_benchmarks``).

        BrokenOffError when a signal asks a training to stop.
        """
        dataset = eval_dataset if eval_dataset is not None else self.eval_dataset
        if dataset is None and self.asks is None:
            raise ConfigError('evaluation needs eval data: name it in "dataset", key "eval"')
        measured = {} if dataset is None else self._measured(dataset, metric_key_prefix)
        metrics = {**measured, **self._benchmarks(metric_key_prefix)}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _benchmarks(self, prefix: str) -> dict[str, float]:
        """``eval_benchmarks``; BrokenOffError when a signal came."""
        if self.asks is None:
            return {}
        with self._answering():
            found = self.asks.measure(
                self, prefix, lambda: self._may_break_off and self.stop_signal.received is not None
            )
        if found is None:
            raise BrokenOffError
        return found

    def predictions(self) -> dict[str, float]:
        """``do_predict``: answer the test rows, and return the metrics."""
        with self._answering():
            return self.asks.predict(self)

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """The model answers as its weights are, without the mixed precision of the training."""
        self.model.eval()
        try:
            with paddle.no_grad(), paddle.amp.auto_cast(enable=False):
                yield
        finally:
            self.model.train()

    def _measured(self, dataset: Rows, prefix: str) -> dict[str, float]:
        """The loss over all labels of ``dataset``."""
        started = time.time()
        plan, idle = self._eval_plan(len(dataset))
        problems: list[PaddleMixError] = []
        summed, broken_off = np.zeros(1, np.float64), False
        self.model.eval()
        with paddle.no_grad():
            for number, batch in enumerate(self._eval_batches(dataset, plan + idle, problems.append)):
                broken_off = self._may_break_off and self.stop_signal.received is not None
                if broken_off:
                    break
                with self.autocast_smart_context_manager():
                    loss = self.compute_loss(self.model, self._prepare_inputs(batch))
                found = self.counted(batch, loss)
                summed = summed + (found if number < len(plan) else np.zeros_like(found))
        self.model.train()
        self.stop_together(problems[0] if problems else None)
        if any(self.gathered(broken_off)):
            raise BrokenOffError
        seconds = time.time() - started
        found = self.means(self._sum_over_ranks(summed))
        return {
            **{f"{prefix}_{name}": value for name, value in found.items()},
            f"{prefix}_runtime": round(seconds, 4),
            f"{prefix}_samples_per_second": round(len(dataset) / max(seconds, 1e-9), 4),
            **self._sample_answers(prefix),
        }

    def counted(self, batch: Batch, loss: Tensor) -> np.ndarray:
        """What a batch adds to an evaluation, float64 [2]: loss times labels, labels."""
        labels = count_labels(batch)
        return np.array([float(loss) * labels, labels], np.float64)

    def means(self, summed: np.ndarray) -> dict[str, float]:
        """Measures by name from the sum of what ``counted`` gave, float64 [2]."""
        return {"loss": float(summed[0] / max(summed[1], 1.0)), "labels": int(summed[1])}

    def _sample_answers(self, prefix: str) -> dict[str, float]:
        """``eval_generate``: answers to a few rows, written, and their scores."""
        if self.sample_answers is None:
            return {}
        self.model.eval()
        try:
            return self.sample_answers.measure(self, prefix)
        finally:
            self.model.train()

    @property
    def _may_break_off(self) -> bool:
        """Whether a signal ends an evaluation: not if it decides on the best checkpoint, nor if processes compute each
        batch together (stage3, tensor and sequence parallel): the signal reaches one of them a batch earlier."""
        decides = self.settings.training.load_best_model_at_end
        together = ShardingOption.FULL_SHARD in self.args.sharding or readers_together(self.settings) > 1
        return self.stop_signal is not None and not decides and not together

    def _eval_batches(
        self, dataset: Rows, plan: list[list[int]], note: Callable[[PaddleMixError], None]
    ) -> Iterator[Batch]:
        training = self.settings.training
        batches = load_batches(
            dataset, self.data_collator, plan, training.dataloader_num_workers, training.dataloader_timeout
        )
        return filled_up(batches, len(plan), self.data_collator, note)

    def _eval_plan(self, rows: int) -> tuple[list[list[int]], list[list[int]]]:
        """The batches of this process, and what it computes beside them and does not count.

        With stage3 the processes fetch each layer together, so all of them must compute equally many batches.
        """
        plan = split_batches(range(rows), self.args.per_device_eval_batch_size)
        world = self.args.dataset_world_size
        if self.args.max_evaluate_steps > 0:
            plan = plan[: self.args.max_evaluate_steps * world]
        own = plan[self.args.dataset_rank :: world]
        missing = -(-len(plan) // world) - len(own) if ShardingOption.FULL_SHARD in self.args.sharding else 0
        return own, plan[:1] * missing

    def _sum_over_ranks(self, values: np.ndarray) -> np.ndarray:
        every = self.gathered(values.tolist())
        width = max(2, *map(len, every))  # a process without a batch has nothing to add
        total = np.sum([one if len(one) == width else [0.0] * width for one in every], axis=0)
        # In tensor and sequence parallel every process of a group has counted the same rows.
        return total / readers_together(self.settings)

    def _note_best(self, metrics: dict[str, float], folder: Path) -> None:
        """A checkpoint is the best one when its evaluation is; evaluations without a checkpoint do not count."""
        training = self.settings.training
        name = training.metric_for_best_model or "loss"
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:  # known before the run: of POPE's F1 there is none while every answer is "no"
            get_logger(__name__).warning(f"{folder.name} cannot be the best one: its evaluation gave no {name}")
            return
        upward = training.greater_is_better
        better = np.greater if (not name.endswith("loss") if upward is None else upward) else np.less
        if self.state.best_metric is None or better(metrics[name], self.state.best_metric):
            self.state.best_metric = metrics[name]
            self.state.best_model_checkpoint = str(folder)
