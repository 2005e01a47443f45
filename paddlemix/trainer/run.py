# SPDX-License-Identifier: Apache-2.0
"""A whole training run from its settings: check, load, train, evaluate, save a folder that the chat opens.

Paddle and PaddleNLP are imported inside the functions, after everything that can be found wrong without them.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlemix.datasets.build import Datasets
from paddlemix.settings.run.loader import differences_from_default, settings_to_json
from paddlemix.settings.run.rules import check_conflicts
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer import asking
from paddlemix.trainer.arguments import (
    check_processes,
    names_of_keys,
    place_in_group,
    place_in_rows,
    refuse_on_cpu,
    training_arguments,
)
from paddlemix.trainer.output import begin, catch_library_logs, held_output, is_main, library_output, write_metrics
from paddlemix.trainer.overview import overview
from paddlemix.trainer.preparation import Prepared, model_arguments, open_start, prepare
from paddlemix.trainer.ranks import RankWatch, leave_in_order, raise_together, require_alike, versions
from paddlemix.trainer.reports import Reports, require_reporters
from paddlemix.trainer.run_log import RunLog, step_of
from paddlemix.utils import device as devices
from paddlemix.utils import early_stop, env, files
from paddlemix.utils.commands import shown
from paddlemix.utils.errors import ConfigError, PaddleMixError
from paddlemix.utils.logging import console, say, say_command
from paddlemix.utils.options import speaking, strict_config

if TYPE_CHECKING:
    from paddlemix.checkpoint.save import ReadValues
    from paddlemix.trainer.sample_answers import SampleAnswers


@dataclass(frozen=True)
class Result:
    """What a run leaves: ``folder`` opens in the chat; ``metrics`` are those of ``all_results.json``."""

    folder: Path
    steps: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    stopped_by: str | None = None

    @property
    def exit_code(self) -> int:
        """0, or 75 when a signal ended the run after saving: the same command goes on."""
        return 75 if self.stopped_by else 0


def pretrain(settings: TrainingSettings) -> Result:
    """First stage, on image and caption: the projector alone, unless ``tune_entire_model`` says that all of it trains.

    Template ``plain`` unless another one is named.
    """
    model = settings.model
    alone = model.tune_mm_mlp_adapter or not model.tune_entire_model
    settings = settings.with_changes(tune_mm_mlp_adapter=alone, template=model.template or "plain")
    return finetune(settings, first_stage=True)


def preference_tune(settings: TrainingSettings) -> Result:
    """Train a model to prefer one answer to another, by ``loss_type`` (None: sigmoid, DPO's own). As ``finetune``."""
    return _started(settings.with_changes(loss_type=settings.preference.loss_type or "sigmoid"), False)


def finetune(settings: TrainingSettings, *, first_stage: bool = False) -> Result:
    """Run a training from its settings and return where the result lies. ``first_stage``: captions are what it learns.

    ConfigError, CheckpointError and DataError before the first step for what is wrong with the input; TrainingError
    when the run cannot go on. Settings, device, model folder, template and rows are checked before paddle is imported,
    and a run that does not get to its first step leaves nothing in ``output_dir``.
    """
    if settings.preference.loss_type is not None:
        raise ConfigError(
            f'"loss_type" is "{settings.preference.loss_type}", a loss of preference tuning: take the key away, or '
            f"start {shown('preference_tune', 'CONFIG.json')}"
        )
    return _started(settings, first_stage)


def _started(settings: TrainingSettings, first_stage: bool) -> Result:
    from paddlemix.trainer.inputs import with_adapter

    with speaking(names_of_keys(settings)), strict_config(settings.model.strict_config):
        settings = with_adapter(settings)
        with speaking(names_of_keys(settings)):
            return _finetune(settings, first_stage)


def _finetune(settings: TrainingSettings, first_stage: bool) -> Result:
    from paddlemix.trainer import checkpointing, inputs

    check_conflicts(settings)  # once more: a command may have changed what the loader has checked
    check_processes(settings)
    devices.require_installed(settings.training.device)
    require_reporters(settings)
    inputs.find_inputs(settings, first_stage=first_stage)
    resume = checkpointing.find_resume(settings)
    output = Path(settings.training.output_dir).expanduser()
    run = TrainingRun(settings, output, resume)
    if settings.training.dry_run:
        return run.rehearse()
    with held_output(output, lambda: run.began):
        run.prepare()
        with library_output(output):
            return run.train()


class TrainingRun:
    """One run from loading to saving; a class only because its steps share what they have made.

    ``set_up`` loads and builds everything (``model``, ``plan``, ``trainer``), ``carry_out`` trains, evaluates and
    saves. Between the two, a comparison with another trainer may set the start of the adapters or the order of rows.
    """

    def __init__(self, settings: TrainingSettings, output: Path, resume: Path | None) -> None:
        self.settings = settings
        self.output = output
        self.resume = resume
        self.prepared: Prepared | None = None
        self.problem: PaddleMixError | None = None
        self.began = False

    def train(self) -> Result:
        """All steps in order."""
        self.set_up()
        return self.carry_out()

    def prepare(self) -> None:
        """Everything that needs no paddle: find the model, read the rows.

        What one of several processes runs into waits for ``set_up``, which raises it on all of them.
        """
        self._log_start()
        try:
            self.prepared = prepare(self.settings, self.resume)
        except PaddleMixError as problem:
            if env.processes() == 1:
                raise
            self.problem = problem
            return
        for note in self.prepared.notes:
            self._say(f"note: {note}")

    def rehearse(self) -> Result:
        """Say what the run would do; nothing is written (``dry_run``)."""
        from paddlemix.trainer.dry_run import rehearse

        self._log_start()
        opened = open_start(self.settings)
        prepared = prepare(self.settings, self.resume, opened)
        for note in prepared.notes:
            self._say(f"note: {note}")
        rehearse(opened, prepared, self.settings)
        return Result(self.output)

    def set_up(self) -> None:
        """Choose the device, load the model, decide what trains."""
        if self.prepared is None and self.problem is None:
            self.prepare()
        device = self._choose_device()
        self.args = training_arguments(self.settings, device.name)
        raise_together(self.problem, self.args.world_size)
        self.reports = Reports(self.settings, self.output, main=is_main())
        require_alike({**settings_to_json(self.settings), **versions()}, self.args.world_size)
        self._load(device)
        self._prepare_training()

    def carry_out(self) -> Result:
        """Train, evaluate, save and tell where the result lies."""
        from paddlemix.trainer.capacity import check_disk

        training = self.settings.training
        if training.do_train:
            self.trainer.require_alike()
            check_disk(self.model, self.plan, self.settings, self.output)
            if is_main():
                for line in overview(self.prepared.data, self.settings, self.args.dataset_world_size):
                    say(line)
        with self.reports.opened():
            begin(self.output, self.settings, anew=training.do_train and self.resume is None)
            self.began = True
            if self.settings.preference.loss_type is not None:
                self.trainer.before_training(self._say)
            if self.log is not None:
                step = step_of(self.resume)
                trains = training.do_train and step < self.trainer.total_steps()
                self.log.begin(step if trains else None)
            return self._train_and_evaluate()

    def _train_and_evaluate(self) -> Result:
        metrics: dict[str, Any] = {}
        steps, stopped = 0, None
        training = self.settings.training
        if training.do_train:
            steps, stopped = self._train(metrics)
        if training.do_eval and not stopped:
            self._evaluate(metrics)
            self._write("eval_results.json", {name: value for name, value in metrics.items() if "eval_" in name})
        if training.do_predict and not stopped:
            asking.predict(self.trainer, metrics, self._write)
        self._write("all_results.json", metrics)
        self._log_end(stopped)
        leave_in_order(self.args.world_size)
        return Result(self.output, steps, metrics, stopped)

    def _log_start(self) -> None:
        if not is_main():
            return
        say("Settings that differ from the defaults:")
        for name, value in differences_from_default(self.settings).items():
            say(f"  {name}: {json.dumps(value, ensure_ascii=False)}")
        for note in self.settings.notes:
            say(f"note: {note}")

    def _choose_device(self) -> devices.Device:
        training = self.settings.training
        wanted = "bfloat16" if training.bf16 else "float16" if training.fp16 else "float32"
        chosen = devices.choose(training.device, wanted)
        if chosen.kind == "cpu":
            refuse_on_cpu(training)
            devices.tune_cpu()
            devices.tune_training()
        import paddle

        paddle.set_device(chosen.name)  # else the first card there is, also for a run on the CPU
        self._say(chosen.reason)
        return chosen

    def _load(self, device: devices.Device) -> None:
        from paddlemix.checkpoint.load import load_model
        from paddlemix.checkpoint.vocab import grow_vocabulary
        from paddlemix.trainer.capacity import check_memory

        prepared, training = self.prepared, self.settings.training
        if device.kind == "npu":
            line = check_memory(prepared.config, self.settings, self.args.world_size)
            if line is not None:
                self._say(line)
        name, folders = model_arguments(self.settings)
        with devices.lasting_blocks():
            self.loaded = load_model(
                name,
                **folders,
                dtype=device.dtype if training.fp16_opt_level == "O2" else "float32",
                lora="keep" if self.settings.model.lora_path else "merge",
                seed=training.seed,
                parallel=place_in_group(self.args),
            )
        self._say(self.loaded.report.summary())
        if self.loaded.report.initialised:
            names = ", ".join(sorted(self.loaded.report.initialised))
            self._say(f"drawn anew: {names}")
        self.model = self.loaded.model
        sequence = place_in_rows(self.settings)
        if sequence is not None:
            self.model.share_rows(sequence)
        self.config = grow_vocabulary(self.model, prepared.rows).with_changes(template=prepared.config.template)

    def _prepare_training(self) -> None:
        from paddlemix.trainer import stages
        from paddlemix.trainer.lora_targets import add_adapters
        from paddlemix.trainer.weights import Surroundings, weights_of

        model = self.settings.model
        if model.lora and not model.lora_path:
            for note in add_adapters(self.model, self.settings, begin=self.resume is None):
                self._say(f"note: {note}")
        self.plan = stages.plan_stage(self.model, self.settings)
        if is_main():
            console().print(self.plan.table())
        around = Surroundings(
            self.config,
            self.prepared.tokenizer,
            settings_to_json(self.settings),
            self.loaded.base,
            self.loaded.vision_tower,
            self.prepared.chat_template,
            frozenset() if self.loaded.adapter is None else frozenset(self.loaded.adapter.other_names),
        )
        self.weights = weights_of(self.plan, around)
        self._build_trainer(self.prepared.data)

    def _build_trainer(self, data: Datasets) -> None:
        from paddlemix.trainer.callbacks import ProgressBar, Recording, Reporting, StopOnSignal
        from paddlemix.trainer.preference import trainer_class

        hidden = self.settings.training.disable_tqdm
        self.log = RunLog(self.output) if is_main() else None
        self.bar = ProgressBar(None if hidden is None else not hidden)
        self.stop = StopOnSignal()
        self.trainer = trainer_class(self.settings)(
            self.model,
            self.args,
            self.settings,
            self.plan,
            data.collator,
            self.weights,
            train_dataset=data.train,
            order=data.order,
            eval_dataset=data.eval,
            callbacks=[self.bar, self.stop, Reporting(self.reports), Recording(self.log)],
        )
        self.trainer.sample_answers = self._sample_answers(data)
        self.trainer.stop_signal = self.stop
        had = self.prepared
        self.trainer.asks = asking.opened(had.asks, self.loaded, had.tokenizer, self.config, had.chat_template)
        self.bar.watch(self.trainer)
        catch_library_logs(self.output)

    def _sample_answers(self, data: Datasets) -> "SampleAnswers | None":
        from paddlemix.trainer.sample_answers import SampleAnswers

        training = self.settings.training
        if not training.eval_generate or data.eval is None:
            return None
        asked = training.eval_generate, training.eval_generate_tokens
        return SampleAnswers(data.eval, *asked, self.prepared.tokenizer, self.config, self.output)

    def _train(self, metrics: dict[str, Any]) -> tuple[int, str | None]:
        if self.resume is not None:
            self._say(f"going on from {self.resume}")
        watch = RankWatch(
            self.output, self.args.process_index, self.args.world_size, lambda: self.trainer.state.global_step
        )
        try:
            with watch.running():
                done = self.trainer.train(resume_from_checkpoint=self.resume)
            metrics.update(done.metrics, train_tokens=self.trainer.tokens)
            if is_main():
                self.trainer.state.save_to_json(str(self.output / "trainer_state.json"))
            self._write("train_results.json", done.metrics)
            if not self.stop.before_the_end:
                self._save()  # to its end, also when a signal comes now
        finally:
            self.bar.close()
            self.stop.restore()
        stopped = self.stop.agreed(self.args.world_size) and (
            self.stop.before_the_end or self.settings.training.do_eval
        )
        return done.global_step, self.stop.received if stopped else None

    def _evaluate(self, metrics: dict[str, Any]) -> None:
        what = "before the evaluation was done"
        if self.settings.training.do_train:
            what += f"; the result is in {self.output}"
        with early_stop.ending_early(what):
            metrics.update(self.trainer.evaluate())

    def _save(self) -> None:
        from paddlemix.trainer import divided

        if not self.settings.training.benchmark:
            divided.write_whole(self.model, self._publish if is_main() else None)

    def _publish(self, read: "ReadValues") -> None:
        from paddlemix.trainer.weights import ModelWeights, ProjectorWeights, publish_result, write_projector

        files.wait_until_writable(self.output)
        weights = self.weights
        if isinstance(weights, ProjectorWeights):
            # Checkpoints of this stage hold the projector only; the result is a whole model, with the file beside it.
            write_projector(self.output, self.model, read)
            weights = ModelWeights(weights.around, self.plan)
        publish_result(self.output, weights, self.model, read)

    def _write(self, name: str, metrics: dict[str, Any]) -> None:
        write_metrics(name, metrics, self.output, self.settings.training.metrics_output_path)

    def _log_end(self, stopped: str | None) -> None:
        training = self.settings.training
        if stopped:
            if not self.stop.before_the_end:
                return self._say(f"stopped by {stopped} before the evaluation; the result is in {self.output}")
            return self._say(
                f"stopped by {stopped}; the same command goes on from the last checkpoint in {self.output}"
            )
        for rows in (self.trainer.train_dataset, self.trainer.eval_dataset):
            bad = getattr(rows, "bad", None)
            if bad is not None and bad.summary():
                self._say(bad.summary())
        if training.benchmark:
            speed = self.trainer.state.log_history[-1].get("train_samples_per_second", 0.0)
            return self._say(f"Effective_samples_per_second: {speed:.3f} (benchmark: the model is not saved)")
        if training.do_train:
            self._say(f"The result is in {self.output}. Talk with it:")
            if is_main():
                picture = () if self.prepared.config.vision is None else ("--image-file", "IMAGE")
                say_command(shown("chat", "--model-path", self.output, *picture))
        return None

    def _say(self, line: str) -> None:
        if is_main():
            say(line)
