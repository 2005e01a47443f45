# SPDX-License-Identifier: Apache-2.0
"""PaddleNLP's Trainer with its unsafe parts replaced: batches, optimizer, loss check, log, evaluation, checkpoints.

What is kept is the loop itself and the distributed strategies around it (data parallel, sharding, AMP).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import paddle
from paddle import Tensor, nn
from paddle.distributed.fleet.meta_parallel import TensorParallel

from paddlemix.checkpoint.save import ReadValues, plain_values
from paddlemix.datasets import packing
from paddlemix.datasets.preprocess import Rows
from paddlemix.models.head_loss import head_note
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.settings.run.loader import settings_to_json
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.splice.plan import label_places
from paddlemix.trainer import checkpointing, divided, resuming, scaling
from paddlemix.trainer.batches import (
    Batch,
    Collate,
    EpochOrder,
    TrainBatches,
    fingerprint,
    total_steps,
)
from paddlemix.trainer.callbacks import SeedEachStep
from paddlemix.trainer.clip import GlobalNormClip, of_arguments
from paddlemix.trainer.evaluation import BrokenOffError, Evaluation
from paddlemix.trainer.frozen import frozen_sample, require_same_frozen
from paddlemix.trainer.library import (
    PrinterCallback,
    ShardingOption,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    TrainOutput,
    logger,
)
from paddlemix.trainer.optimization import build_optimizer, build_schedule, warmup_note
from paddlemix.trainer.ranks import require_alike
from paddlemix.trainer.scaling import AfterUpdate, MixedPrecision
from paddlemix.trainer.spikes import LossHistory
from paddlemix.trainer.stages import StagePlan
from paddlemix.trainer.step_log import StepLog
from paddlemix.trainer.stopping import Stopping
from paddlemix.utils import files, foreign
from paddlemix.utils.errors import CheckpointError, ConfigError
from paddlemix.utils.logging import get_logger


class Weights(Protocol):
    """How the weights of a checkpoint are written and read (a whole model, or an adapter)."""

    def save(self, folder: Path, model: LlavaForCausalLM, read: ReadValues = plain_values) -> None:
        """Write a complete folder that the chat opens. ``read`` gives the values of a parameter."""

    def load(self, folder: Path, model: LlavaForCausalLM) -> None:
        """Put the trained weights of ``folder`` into ``model``, bit for bit."""


class LlavaTrainer(Evaluation, StepLog, Stopping, MixedPrecision, Trainer):
    """Trains what ``plan`` says on batches of the splice plan.

    The loss of a step is the mean over the labels of each micro-batch, averaged over micro-batches and processes,
    which is what the original's trainer computes. A run is a function of its settings, its data and its seed:
    batches and dropout of step n depend on (seed, n, rank) only, so a resumed run equals the straight one bit for bit.
    """

    def __init__(
        self,
        model: LlavaForCausalLM,
        args: TrainingArguments,
        settings: TrainingSettings,
        plan: StagePlan,
        collate: Collate,
        weights: Weights,
        *,
        train_dataset: Rows | None = None,
        order: EpochOrder | None = None,
        eval_dataset: Rows | None = None,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self.settings = settings
        self.plan = plan
        self.weights = weights
        self.begin_counting()
        self.losses = LossHistory(settings.training.loss_jump)
        self.last_norm = self.last_rate = self.running_loss = float("nan")
        self._open_loss: Tensor | None = None
        self._carried: checkpointing.RunState | None = None
        plan.apply(model)
        self._frozen = frozen_sample(model, plan.rules) if train_dataset is not None else {}
        divided.check_sharding(model, settings.training.sharding or "")
        if settings.training.recompute:
            model.enable_recompute()
        if settings.training.fuses_head_and_loss:
            model.fuse_head_and_loss()
        if settings.model.neftune:
            model.enable_neftune(settings.model.neftune_noise_alpha)
        super().__init__(
            model=model,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[SeedEachStep(self), AfterUpdate(self), *callbacks],
        )
        self.remove_callback(PrinterCallback)
        self.scale_master_gradients()
        self._grouped_for = args.dataset_world_size
        self.batches = None
        if train_dataset is not None and order is not None:
            self.batches = TrainBatches(
                train_dataset,
                collate,
                order,
                batch_size=args.per_device_train_batch_size,
                accumulate=args.gradient_accumulation_steps,
                rank=args.dataset_rank,
                world=args.dataset_world_size,
                workers=args.dataloader_num_workers,
                timeout=settings.training.dataloader_timeout,
                drop_last=args.dataloader_drop_last,
            )
            args.gradient_accumulation_steps = self.batches.accumulate

    # Batches

    def get_train_dataloader(self) -> TrainBatches:
        """The batches of this process, epoch after epoch."""
        if self.batches is None:
            raise ConfigError('"do_train" needs training data: name it in "dataset", key "train"')
        return self.batches

    def _prepare_inputs(self, inputs: Batch) -> dict[str, Tensor]:
        if "labels" in inputs:
            places = label_places(inputs["labels"], inputs.get("segments"), inputs.get("starts"))
            inputs = {**inputs, "label_places": places}
        return {name: paddle.to_tensor(value) for name, value in inputs.items()}

    # Optimizer

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        """AdamW and the schedule from our own settings; both are made once per trainer."""
        if self.optimizer is None:
            note = warmup_note(self.settings.training, num_training_steps)
            if note and self.is_world_process_zero():
                get_logger(__name__).info(f"note: {note}")
            if self.is_world_process_zero():
                get_logger(__name__).info(head_note(self.model.loss_portion))
            self.lr_scheduler = build_schedule(self.settings.training, num_training_steps)
            half = self.model.dtype != "float32"
            clip = GlobalNormClip(self.settings.training.max_grad_norm, of_arguments(self.args), self._note_norm)
            self.optimizer = build_optimizer(
                self.model, self.plan, self.settings.training, self.lr_scheduler, clip, multi_precision=half
            )

    def _wrap_model(self, model: nn.Layer, training: bool = True) -> nn.Layer:
        wrapped = super()._wrap_model(model, training)
        if isinstance(wrapped, TensorParallel):
            # It would send the batch of the first process to the others, and wait for it; they have made the same one.
            wrapped._pre_forward = lambda *_, **__: None
        if ShardingOption.FULL_SHARD in self.args.sharding:
            divided.note_slices(self.model.parameters(), self.sharding_group)
        return wrapped

    # One step

    def training_step(self, model: nn.Layer, inputs: Batch, step_control: int = 0) -> Tensor:
        """Forward and backward of one micro-batch; its share of the step's loss, a float32 scalar."""
        self.count(inputs)
        try:
            loss = super().training_step(model, inputs)
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and "ResourceExhausted" not in str(error):
                raise
            raise self.out_of_memory(inputs) from error
        sequence = self.model.sequence
        if sequence is not None:  # so far it is what the places of this process add
            loss = sequence.mean(loss)
        if self._carried is not None and self._carried.open_loss:
            # The straight run would have this sum in its accumulator already; float32, in the same order.
            loss = paddle.to_tensor(self._carried.open_loss_of(self.args), dtype="float32") + loss
        self._carried = None
        return loss

    # Log, evaluate, save

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, model: nn.Layer, epoch: int, *_: Any, **__: Any) -> None:
        if self.control.should_log:
            self._log_step(tr_loss)
        # The state at the end of a step: what later micro-batches add belongs to the next one.
        self._open_loss, self._tokens_done = tr_loss.clone(), self.tokens
        saved, metrics, begun = self.saved_at_a_signal, None, time.time()
        if self.control.should_evaluate and not (saved and self.within_an_epoch):
            metrics = self._evaluate_or_stop()
        if self.control.should_save and not (saved and metrics is None):
            self._save_checkpoint(model, metrics)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        self._globalstep_last_start_time += time.time() - begun  # speeds are those of the training alone

    def _evaluate_or_stop(self) -> dict[str, float] | None:
        try:
            return self.evaluate()
        except BrokenOffError:
            self.control.should_evaluate = False
            self.stop_signal.stop(self.control, self.args.world_size)
            return None

    def _save_checkpoint(self, model: nn.Layer, metrics: dict[str, float] | None = None) -> None:
        """Publish ``checkpoint-N``, then remove the oldest ones beyond ``save_total_limit``."""
        folder = self.checkpoint_folder()
        if metrics is not None:
            self._note_best(metrics, folder)
        self.saving = True
        self._write_checkpoint(folder)
        self.saving, self.saved_step = False, self.state.global_step

    def _write_checkpoint(self, folder: Path) -> None:
        """Every process takes part, one of them writes."""
        state = self._run_state()
        if self.is_world_process_zero():
            files.wait_until_writable(folder.parent)
            with files.publish_folder(folder, replace=True) as temporary:
                divided.write_whole(self.model, lambda read: self.weights.save(temporary, self.model, read))
                self.state.save_to_json(str(temporary / checkpointing.LOG_FILE))
                checkpointing.write_state(temporary, state)
                checkpointing.write_rows(temporary, self.train_dataset)
                self._save_optimizer(temporary)
            best = self.state.best_model_checkpoint if self.settings.training.load_best_model_at_end else None
            checkpointing.rotate(self.args.output_dir, self.args.save_total_limit, keep=best)
        else:
            divided.write_whole(self.model, None)
            self._save_optimizer(None)
        if self.args.world_size > 1:
            paddle.distributed.barrier()

    def _save_optimizer(self, folder: Path | None) -> None:
        """Into ``folder``, which the writing process knows; with sharding every process adds its part to it."""
        parameters = self.plan.trainable(self.model)
        if not self._has_divided_state:
            if folder is not None:
                checkpointing.save_optimizer(folder / self._optimizer_file(), self.optimizer, parameters)
            return
        told = [str(folder)]
        paddle.distributed.broadcast_object_list(told, src=0)
        checkpointing.save_optimizer(Path(told[0]) / self._optimizer_file(), self.optimizer, parameters)
        paddle.distributed.barrier()

    @property
    def _has_divided_state(self) -> bool:
        return bool(self.args.sharding) or self.args.tensor_parallel_degree > 1

    def _optimizer_file(self) -> str:
        if not self._has_divided_state:
            return "optimizer.safetensors"
        return f"optimizer-{self.args.process_index:05d}-of-{self.args.world_size:05d}.safetensors"

    def _run_state(self) -> checkpointing.RunState:
        open_losses = self.gathered(float(self._open_loss))
        return checkpointing.RunState(
            global_step=self.state.global_step,
            schedule_step=self.lr_scheduler.last_epoch,
            world_size=self.args.world_size,
            data=fingerprint(self.train_dataset),
            open_loss=sum(open_losses) / len(open_losses),
            open_losses=open_losses,
            logged_loss=self._total_loss_scalar,
            last_logged_step=self._globalstep_last_logged,
            tokens=self._tokens_done,
            grouped_for=self._grouped_for,
            packing=packing.RULE,
            skipped_updates=self.skipped_updates,
            scaler=scaling.numbers(self.scaler) if self.do_grad_scaling else {},
            settings=settings_to_json(self.settings),
            frozen=self._frozen,
        )

    # Resume

    def require_alike(self) -> None:
        """ConfigError on every process when they have read other rows or other weights."""
        facts = {"the training data (fingerprint)": fingerprint(self.train_dataset)}
        facts |= {f"the weights of {name}": values for name, values in self._frozen.items()}
        require_alike(facts, self.args.world_size)

    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return total_steps(self.settings.training, len(self.train_dataset), self.args.dataset_world_size)

    def train(self, resume_from_checkpoint: str | Path | None = None, **_: Any) -> TrainOutput:
        """Train to the end. A checkpoint of the last step trains nothing and gives its own result back."""
        folder = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self.get_train_dataloader()
        if folder is not None:
            self._continue_from(folder)
        if folder is not None and self._carried.global_step >= self.total_steps():
            output = self._finished(folder)
        else:
            with self.saving_at_an_error():
                output = super().train(resume_from_checkpoint=str(folder) if folder else None)
        if self.settings.training.load_best_model_at_end and self.state.best_model_checkpoint:
            self._take_best(Path(self.state.best_model_checkpoint))
        return output

    def _finished(self, folder: Path) -> TrainOutput:
        self.weights.load(folder, self.model)
        log = folder / checkpointing.LOG_FILE
        with foreign.reading(f"{log}: it is", CheckpointError, "take an older checkpoint"):
            self.state = TrainerState.load_from_json(str(log))
        carried = self._carried
        loss = (carried.logged_loss + carried.open_loss) / max(carried.global_step, 1)
        return TrainOutput(carried.global_step, loss, {"train_loss": loss})

    def _take_best(self, best: Path) -> None:
        if not best.is_dir():
            raise CheckpointError(f"{best}: the best checkpoint is gone; the weights are those of the last step")
        self.weights.load(best, self.model)
        get_logger(__name__).info(f"taken: the best checkpoint, {best.name} ({self.state.best_metric:g})")

    def _continue_from(self, folder: Path) -> None:
        state = checkpointing.read_state(folder)
        resuming.require_same_run(state, self.settings, self.args.world_size, self.train_dataset, folder)
        require_same_frozen(state.frozen, self._frozen, folder, self.settings.model.model_name_or_path)
        self._carried, self.saved_step, self.skipped_updates = state, state.global_step, state.skipped_updates
        self._grouped_for = state.grouped_for or state.world_size // resuming.readers_together(self.settings)
        self.tokens = self._tokens_before = state.tokens * state.world_size // self.args.world_size
        if not self.args.ignore_data_skip:
            self.batches.resume(state.global_step * self.args.gradient_accumulation_steps)

    def _load_from_checkpoint(self, resume_from_checkpoint: str | None = None) -> None:
        if resume_from_checkpoint is not None:
            self.weights.load(Path(resume_from_checkpoint), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        paths = checkpointing.optimizer_files(Path(checkpoint), self._optimizer_file())
        checkpointing.load_optimizer(paths, self.optimizer, self.plan.trainable(self.model))
        self.lr_scheduler.step(self._carried.schedule_step)
        if self.do_grad_scaling and self._carried.scaler:
            scaling.restore(self.scaler, self._carried.scaler)

    def _print_timer(self) -> None:
        # The parent's also asks paddle for timers of pipelines, and learns from an assertion that there are none:
        # under ``python -O`` that is an AttributeError.
        if self.timers is not None:
            times = self.timers.log(list(self.timers.timers), reset=True)
            logger.info(f"[Profile global_step: {self.state.global_step}] {times}")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        # Nothing to load: every step seeds its own noise.
        return
