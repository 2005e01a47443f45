# SPDX-License-Identifier: Apache-2.0
"""The trainer of preference losses: the same loop, batches, checkpoints and resume with another loss."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from paddlemix.datasets.preference import FORWARD, KL, PreferenceDataset
from paddlemix.models import preference_loss as losses
from paddlemix.ops import few_rows
from paddlemix.ops.linear import lora_layers
from paddlemix.settings.run.preference import UNPAIRED, PreferenceGroup
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer import checkpointing
from paddlemix.trainer.batches import Batch, fingerprint, split_batches
from paddlemix.trainer.llava_trainer import LlavaTrainer
from paddlemix.trainer.reference import FILE, Reference, kept_rows, start_key

PAIR_MEASURES = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "nll_loss",
)  # fmt: skip
SINGLE_MEASURES = ("rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl")
"""TRL's names; the margin of single answers is made of their means."""


@dataclasses.dataclass(frozen=True)
class Answers:
    """Log-probabilities of the answers of a batch.

    ``summed`` float32 [R] (chosen, then rejected), ``lengths`` float32 [R] their ids, ``cross_entropy`` a float32
    scalar of the chosen rows, or None.
    """

    summed: Tensor
    lengths: Tensor
    cross_entropy: Tensor | None

    @property
    def mean(self) -> Tensor:
        """float32 [R]: a token."""
        return self.summed / paddle.clip(self.lengths, min=1.0)


@few_rows.kept_away()  # the reference has no gradients, and its ratio to the same model with them is 1
def answers_of(model: nn.Layer, batch: dict[str, Tensor], prefix: str = "") -> Answers:
    """One pass over a batch of ``PreferenceCollator`` (shapes: there); with ``prefix`` "kl_" over its mismatched pairs.

    Log-probabilities of R answers, float32 [R].
    """
    given = {name: batch[prefix + name] for name in FORWARD if prefix + name in batch}
    tokens = model(**given, pixels=batch.get("pixels"))
    rows = batch["token_ids"].shape[0]
    with paddle.amp.auto_cast(enable=False):  # half precision cannot hold the sums
        # A product and no scatter: its sums have one order on every device.
        belongs = functional.one_hot(batch[f"{prefix}rows"], rows + 1)[:, :rows]
        summed = paddle.matmul(tokens.unsqueeze(0), belongs).reshape([-1])
        cross_entropy = None
        if not prefix and "learnt" in batch:
            cross_entropy = -(tokens * batch["learnt"]).sum() / paddle.clip(batch["learnt"].sum(), min=1.0)
    return Answers(summed, batch["lengths"], cross_entropy)


class PreferenceTrainer(LlavaTrainer):
    """Trains what ``plan`` says to prefer one answer to another.

    The loss of a step is the mean over the pairs of each micro-batch, averaged over micro-batches and processes. Logged
    beside it are TRL's measures, as means over all pairs since the last line (of all processes). A run that goes on
    gives the numbers of the straight one.
    """

    def before_training(self, say: Callable[[str], None]) -> None:
        """Take the reference of the run, whose model is at its start now; ``say`` gets lines for the person.

        With ``precompute_ref_log_probs`` its log-probabilities of all rows, before the first of them is learnt.
        """
        self.loss: PreferenceGroup = self.settings.preference
        self.names = SINGLE_MEASURES if self.loss.loss_type == UNPAIRED else PAIR_MEASURES
        self._open = self._open_at_step = self._nothing()
        if "stage3" in self.settings.training.sharding:
            self.model.token_portion = 0  # the head is at hand only while its own layer runs
        for _, layer in lora_layers(self.model) if self.settings.model.lora_path else ():
            layer.dropout = 0.0  # as in TRL: the reference has none, and the two would differ from the first step on
        self.reference = Reference.taken(self.model, self.plan, self.settings)
        if self.reference is None:
            return
        say(self.reference.cost())
        for name, rows in (("train", self.train_dataset), ("eval", self.eval_dataset)):
            if rows is not None and self.loss.precompute_ref_log_probs:
                say(f"reference: log-probabilities of {len(rows):,} {name} rows")
                while hasattr(rows, "dataset"):  # a mixture, or rows under the numbers of a run's first part
                    rows = rows.dataset
                self.precompute(rows, Path(self.args.output_dir), name)

    def _nothing(self) -> Tensor:
        return paddle.zeros([2, len(self.names)], "float32")

    # Loss

    def compute_loss(self, model: nn.Layer, inputs: dict[str, Tensor], return_outputs: bool = False) -> Tensor:
        """The loss of one micro-batch, a float32 scalar; its measures are added to those since the last log line."""
        before, before_kl = self._by_reference(inputs)
        other = None
        if before_kl is not None:
            with paddle.no_grad():
                other = answers_of(self.model, inputs, KL).summed - before_kl
        found = answers_of(model, inputs)
        with paddle.amp.auto_cast(enable=False):
            if other is None:
                loss, measures = self._of_pairs(found, before, inputs)
            else:
                loss, measures = self._of_single(found, before, self._divergence(other, inputs["weights"]), inputs)
        self._last = measures.detach()
        if self.model.training:
            self._open = self._open + self._last
        return loss

    def _by_reference(self, inputs: dict[str, Tensor]) -> tuple[Tensor | None, Tensor | None]:
        """float32 [R] of the batch and, for KTO, [P] of its mismatched pairs."""
        if not self.loss.reference:
            return None, None
        if "reference" in inputs:
            return inputs["reference"], None
        with self.reference.in_place():
            other = answers_of(self.model, inputs, KL).summed if self.loss.loss_type == UNPAIRED else None
            return answers_of(self.model, inputs).summed, other

    def _divergence(self, ratios: Tensor, weights: Tensor) -> Tensor:
        """KTO's estimate, a scalar of at least 0: the mean over the mismatched pairs of a micro-batch."""
        mean = _mean(ratios, weights)
        if self.args.world_size > 1 and self.model.training:  # evaluations have other numbers of batches
            paddle.distributed.all_reduce(mean)
            mean = mean / self.args.world_size
        return paddle.clip(mean, min=0.0)

    def _of_pairs(self, found: Answers, before: Tensor | None, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        kind, beta, weights = self.loss.loss_type, self.loss.beta, inputs["weights"]
        by_length = kind in (losses.SIMPO, losses.ORPO)
        logps = found.mean if by_length else found.summed
        scores = logps if before is None else found.summed - before
        chosen, rejected = scores.chunk(2)
        if kind == losses.SIGMOID:
            each = losses.dpo_loss(chosen, rejected, beta, self.loss.label_smoothing)
        elif kind == losses.HINGE:
            each = losses.hinge_loss(chosen, rejected, beta)
        elif kind == losses.IPO:
            each = losses.ipo_loss(*(scores / paddle.clip(found.lengths, min=1.0)).chunk(2), beta)
        elif kind == losses.SIMPO:
            each = losses.simpo_loss(chosen, rejected, beta, self.loss.simpo_gamma, self.loss.label_smoothing)
        else:
            each = losses.orpo_loss(chosen, rejected, beta)
        loss = _mean(each, weights)
        entropy = found.cross_entropy
        if entropy is not None:
            loss = loss + (1.0 if kind == losses.ORPO else self.loss.rpo_alpha) * entropy * weights.max()
        rewards = (beta * chosen, beta * rejected)
        better = (rewards[0] > rewards[1]).astype("float32")
        values = [*rewards, better, rewards[0] - rewards[1], *logps.chunk(2)]
        values.append(paddle.zeros_like(better) if entropy is None else entropy.expand(better.shape))
        stacked = paddle.stack(values)
        return loss, paddle.stack([(stacked * weights).sum(-1), weights.sum().expand([len(values)])])

    def _of_single(
        self, found: Answers, before: Tensor, kl: Tensor, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        group, weights, good = self.loss, inputs["weights"], inputs["desirable"]
        ratio = found.summed - before
        each = losses.kto_loss(ratio, good, kl, group.beta, group.desirable_weight, group.undesirable_weight)
        of_good, of_bad = weights * good, weights * (1.0 - good)
        reward, logps = group.beta * ratio, found.summed
        sums = [(reward * of_good).sum(), (reward * of_bad).sum(), (logps * of_good).sum(), (logps * of_bad).sum()]
        counts = [of_good.sum(), of_bad.sum()] * 2
        return _mean(each, weights), paddle.stack([
            paddle.stack([*sums, (kl * weights).sum()]), paddle.stack([*counts, weights.sum()]),
        ])  # fmt: skip

    # Measures

    def _means(self, measures: np.ndarray) -> dict[str, float]:
        """Means by name of float64 [2, n]: sums, and what they are sums of."""
        sums, counts = measures
        found = {
            name: float(total / count) for name, total, count in zip(self.names, sums, counts, strict=True) if count > 0
        }
        if self.loss.loss_type == UNPAIRED and {"rewards/chosen", "rewards/rejected"} <= set(found):
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        if self.loss.loss_type != losses.ORPO and not self.loss.rpo_alpha:
            found.pop("nll_loss", None)
        return found

    def log(self, logs: dict[str, float], **kwargs: float) -> None:
        """Beside the loss of some steps stand their measures."""
        if "loss" in logs:
            every = self.gathered(self._open.numpy().tolist())
            logs.update(self._means(np.asarray(every, np.float64).sum(0)))
            self._open = self._open_at_step = self._nothing()
        super().log(logs, **kwargs)

    def counted(self, batch: Batch, loss: Tensor) -> np.ndarray:
        """Of a batch of an evaluation: loss times pairs, pairs, and the measures (float64 [2 + 2 n])."""
        pairs = float(batch["weights"].sum())
        return np.array([float(loss) * pairs, pairs, *self._last.numpy().reshape([-1]).tolist()], np.float64)

    def means(self, summed: np.ndarray) -> dict[str, float]:
        """Loss, pairs and measures of an evaluation from the sum of what ``counted`` gave (float64 [2 + 2 n])."""
        found = self._means(summed[2:].reshape([2, -1]))
        return {"loss": float(summed[0] / max(summed[1], 1.0)), "pairs": int(summed[1]), **found}

    # Checkpoints

    def _maybe_log_save_evaluate(
        self, tr_loss: Tensor, model: nn.Layer, epoch: int, *more: Batch | None, **named: Batch | None
    ) -> None:
        self._open_at_step = self._open
        super()._maybe_log_save_evaluate(tr_loss, model, epoch, *more, **named)

    def _run_state(self) -> checkpointing.RunState:
        measured = self.gathered(self._open_at_step.numpy().tolist())
        return dataclasses.replace(super()._run_state(), measured=measured)

    def _continue_from(self, folder: Path) -> None:
        super()._continue_from(folder)
        if self._carried.measured:
            self._open = paddle.to_tensor(self._carried.measured[self.args.process_index], dtype="float32")

    # Reference

    def precompute(self, dataset: PreferenceDataset, output: Path, name: str) -> None:
        """Give ``dataset`` the reference's log-probabilities of all its rows, each process a share of them.

        They are kept in ``output`` under the name of the part, so that a run that was ended goes on with them.
        """
        rank, world = self.args.process_index, self.args.world_size
        key = start_key(self.model, fingerprint(dataset), self.settings, (name, world))
        ending = f"-{rank:05d}" if world > 1 else ""
        found = kept_rows(
            output / f"{name}_{FILE.replace('.', f'{ending}.')}", key, range(rank, len(dataset), world),
            lambda rows: self._computed(dataset, rows),
        )  # fmt: skip
        table = np.zeros((len(dataset), 2), np.float32)
        for part in self.gathered({row: values.tolist() for row, values in found.items()}):
            for row, values in part.items():
                table[row] = values
        dataset.reference = table

    def _computed(self, dataset: PreferenceDataset, rows: list[int]) -> np.ndarray:
        found = []
        for batch in split_batches(rows, self.args.per_device_eval_batch_size):
            pairs = [dataset[row] for row in batch]
            given = np.zeros((len(batch), 2), np.float32)
            good = [number for number, pair in enumerate(pairs) if pair is not None]
            if good:
                inputs = self._prepare_inputs(self.data_collator(pairs))
                with self.reference.in_place(), self.autocast_smart_context_manager():
                    given[good] = answers_of(self.model, inputs).summed.numpy().reshape([2, -1]).T
            found.append(given)
        return np.concatenate(found)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum() / paddle.clip(weights.sum(), min=1.0)


def trainer_class(settings: TrainingSettings) -> type[LlavaTrainer]:
    """The trainer of a run."""
    return LlavaTrainer if settings.preference.loss_type is None else PreferenceTrainer
