# SPDX-License-Identifier: Apache-2.0
"""A whole training run from its settings: check, load, train, evaluate, save a folder that the chat opens.

Paddle and PaddleNLP are imported inside the functions, after everything that can be found wrong without them.
"""

import contextlib
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlemix.datasets.reading import RowsRead
from paddlemix.settings.loader import differences_from_default, settings_to_json
from paddlemix.settings.training import TrainingSettings
from paddlemix.trainer.arguments import check_processes, place_in_group, training_arguments
from paddlemix.trainer.ranks import RankWatch, require_alike, versions
from paddlemix.utils import device as devices
from paddlemix.utils import env, files
from paddlemix.utils.commands import shown
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.logging import console, redirect_library_logs, say, say_command

LOG_FILE = "train.log"
SETTINGS_FILE = "training_settings.json"


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


def finetune(settings: TrainingSettings, *, first_stage: bool = False) -> Result:
    """Run a training from its settings and return where the result lies. ``first_stage``: captions are what it learns.

    ConfigError, CheckpointError and DataError before the first step for what is wrong with the input; TrainingError
    when the run cannot go on. Nothing is written before the settings, ``output_dir`` and the checkpoint are checked.
    """
    from paddlemix.trainer import checkpointing, inputs, stages

    stages.stage_of(settings)
    check_processes(settings)
    inputs.find_inputs(settings, first_stage=first_stage)
    resume = checkpointing.find_resume(settings)
    rows = inputs.read_rows(settings)
    output = Path(settings.training.output_dir).expanduser()
    guard = checkpointing.lock(output) if _is_main() else contextlib.nullcontext()
    with guard, library_output(output):
        if _is_main():
            files.remove_leftovers(output)
            if resume is None:
                checkpointing.clear_output(output)
            files.atomic_write(output / SETTINGS_FILE, json.dumps(settings_to_json(settings), indent=2) + "\n")
        return TrainingRun(settings, output, resume, rows).go()


class TrainingRun:
    """One run from loading to saving; a class only because its steps share what they have made.

    ``set_up`` loads and builds everything (``model``, ``plan``, ``trainer``), ``carry_out`` trains, evaluates and
    saves. Between the two, a comparison with another trainer may set the start of the adapters or the order of rows.
    """

    def __init__(
        self, settings: TrainingSettings, output: Path, resume: Path | None, rows: RowsRead | None = None
    ) -> None:
        self.settings = settings
        self.output = output
        self.resume = resume
        self.rows = rows

    def go(self) -> Result:
        """All steps in order."""
        self.set_up()
        return self.carry_out()

    def set_up(self) -> None:
        """Choose the device, load the model, decide what trains, read the data."""
        self._greet()
        device = self._choose_device()
        self.args = training_arguments(self.settings, device.name)
        require_alike({**settings_to_json(self.settings), **versions()}, self.args.world_size)
        self._load(device)
        self._prepare()

    def carry_out(self) -> Result:
        """Train, evaluate, save and tell where the result lies."""
        metrics: dict[str, Any] = {}
        steps, stopped = 0, None
        if self.settings.training.do_train:
            steps, stopped = self._train(metrics)
        if self.settings.training.do_eval and not stopped:
            metrics.update(self.trainer.evaluate())
            self._write("eval_results.json", {name: value for name, value in metrics.items() if "eval_" in name})
        self._write("all_results.json", metrics)
        self._farewell(stopped)
        if self.args.world_size > 1:
            import paddle

            paddle.distributed.barrier()  # all leave together: the first one serves the connections of the others
        return Result(self.output, steps, metrics, stopped)

    def _greet(self) -> None:
        if not _is_main():
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
        if chosen.kind == "cpu" and training.tensor_parallel_degree > 1:
            raise ConfigError(
                f'"tensor_parallel_degree" is {training.tensor_parallel_degree}, but the device is cpu, where paddle '
                'does not train in tensor parallel; take the key away, or write "device": "npu" or "gpu"'
            )
        if chosen.kind == "cpu":
            devices.tune_cpu()
        import paddle

        paddle.set_device(chosen.name)  # else the first card there is, also for a run on the CPU
        self._say(chosen.reason)
        return chosen

    def _load(self, device: devices.Device) -> None:
        from paddlemix.checkpoint.load import INIT, load_model
        from paddlemix.checkpoint.sources import find_sources
        from paddlemix.checkpoint.vocab import grow_vocabulary
        from paddlemix.text.tokenizer import load_tokenizer
        from paddlemix.text.vocabulary import fit_rows
        from paddlemix.trainer.capacity import check_memory
        from paddlemix.utils.constants import IMAGE_END_TOKEN, IMAGE_PATCH_TOKEN, IMAGE_START_TOKEN

        model = self.settings.model
        half = self.settings.training.fp16_opt_level == "O2"
        name = model.lora_path or model.model_name_or_path
        folders = {
            "base": model.model_name_or_path if model.lora_path else model.base,
            "vision_tower": model.vision_tower,
            "projector": model.pretrain_mm_mlp_adapter or (INIT if model.vision_tower else None),
            "overrides": _overrides(self.settings),
        }
        if device.kind == "npu":
            line = check_memory(find_sources(name, **folders).config, self.settings, self.args.world_size)
            if line is not None:
                self._say(line)
        self.loaded = load_model(
            name,
            **folders,
            dtype=device.dtype if half else "float32",
            lora="keep" if model.lora_path else "merge",
            seed=self.settings.training.seed,
            parallel=place_in_group(self.args),
        )
        self._say(self.loaded.report.summary())
        if self.loaded.report.initialised:
            names = ", ".join(sorted(self.loaded.report.initialised))
            self._say(f"drawn anew: {names}")
        self.model = self.loaded.model
        self.tokenizer = load_tokenizer(model.text_model_name_or_path or self.loaded.tokenizer_folder)
        config = self.loaded.config
        marks = [IMAGE_PATCH_TOKEN] * config.use_im_patch_token
        marks += [IMAGE_START_TOKEN, IMAGE_END_TOKEN] * config.use_im_start_end
        if marks and self.tokenizer.add_special(marks):
            config = grow_vocabulary(self.model, self.tokenizer.vocab_size)
        fit_rows(self.tokenizer, config.text.vocab_size)
        self.config = config

    def _prepare(self) -> None:
        from paddlemix.trainer import stages
        from paddlemix.trainer.lora_targets import add_adapters
        from paddlemix.trainer.weights import Surroundings, weights_of

        model = self.settings.model
        if model.lora and not model.lora_path:
            if self.loaded.adapter is not None:
                raise ConfigError(
                    f'"model_name_or_path": {self.loaded.folder} is an adapter itself; to train it on give it as '
                    '"lora_path" and its base as "model_name_or_path", or merge it first'
                )
            for note in add_adapters(self.model, self.settings):
                self._say(f"note: {note}")
        self.plan = stages.plan_stage(self.model, self.settings)
        if _is_main():
            console().print(self.plan.table())
        data = self._read_data()
        around = Surroundings(
            self.config,
            self.tokenizer,
            settings_to_json(self.settings),
            self.loaded.base,
            self.loaded.vision_tower,
            self.chat_template,
        )
        self.weights = weights_of(self.plan, around)
        self._build_trainer(data)

    def _read_data(self) -> Any:
        """The data sets; with them it is known what the result is asked with."""
        from paddlemix.datasets.build import build_datasets
        from paddlemix.trainer import conversation

        settings, folder, own = self.settings, self.loaded.template_folder, self.config.template
        data = build_datasets(
            settings,
            self.config,
            self.tokenizer,
            rows=self.rows,
            template=conversation.training_template(settings, folder, own),
            rank=self.args.dataset_rank,
            world=self.args.dataset_world_size,
        )
        layouts = data.train.layouts if data.train is not None else []
        for note in data.notes:
            self._say(f"note: {note}")
        for note in conversation.notes(layouts, settings, folder, own):
            self._say(f"note: {note}")
        name, self.chat_template = conversation.asked_with(layouts, settings, folder, own)
        self.config = self.config.with_changes(template=name)
        return data

    def _build_trainer(self, data: Any) -> None:
        from paddlemix.trainer.callbacks import ProgressBar, StopOnSignal
        from paddlemix.trainer.llava_trainer import LlavaTrainer

        hidden = self.settings.training.disable_tqdm
        self.bar = ProgressBar(None if hidden is None else not hidden)
        self.stop = StopOnSignal()
        self.trainer = LlavaTrainer(
            self.model,
            self.args,
            self.settings,
            self.plan,
            data.collator,
            self.weights,
            train_dataset=data.train,
            order=data.order,
            eval_dataset=data.eval,
            callbacks=[self.bar, self.stop],
        )
        self.bar.watch(self.trainer)
        redirect_library_logs(self.output / LOG_FILE)

    def _train(self, metrics: dict[str, Any]) -> tuple[int, str | None]:
        self.trainer.require_alike()
        self._check_space()
        if self.resume is not None:
            self._say(f"going on from {self.resume}")
        watch = RankWatch(
            self.output, self.args.process_index, self.args.world_size, lambda: self.trainer.state.global_step
        )
        try:
            with watch.running():
                done = self.trainer.train(resume_from_checkpoint=self.resume)
        finally:
            self.bar.close()
            self.stop.restore()
        metrics.update(done.metrics, train_tokens=self.trainer.tokens)
        if _is_main():
            self.trainer.state.save_to_json(str(self.output / "trainer_state.json"))
        self._write("train_results.json", done.metrics)
        if self.stop.received is None:
            self._save()
        return done.global_step, self.stop.received

    def _check_space(self) -> None:
        """A disk that cannot hold one checkpoint beside the result is told before the first step."""
        from paddlemix.ops.parallel import whole_shape

        sizes = {
            name: math.prod(whole_shape(value)) * value.element_size() for name, value in self.model.named_parameters()
        }
        trained = sum(sizes[name] for name in self.plan.rules)
        saved = trained if self.plan.stage == "lora" else sum(sizes.values())
        moments = 8 * sum(part.trainable for part in self.plan.parts)
        needed = saved + (saved + moments if self.settings.training.save_strategy != "no" else 0)
        free = shutil.disk_usage(self.output).free
        if free < needed:
            raise ConfigError(
                f'"output_dir": {self.output} needs about {needed / files.MIB:,.0f} MiB for the result and one '
                f"checkpoint, {free / files.MIB:,.0f} MiB are free; free some space or choose another folder"
            )

    def _save(self) -> None:
        from paddlemix.trainer import divided

        if not self.settings.training.benchmark:
            divided.as_one(self.model, self._publish if _is_main() else None)

    def _publish(self, read: Any) -> None:
        from paddlemix.trainer.weights import ModelWeights, ProjectorWeights, publish_result, write_projector

        files.wait_until_writable(self.output)
        weights = self.weights
        if isinstance(weights, ProjectorWeights):
            # Checkpoints of this stage hold the projector only; the result is a whole model, with the file beside it.
            write_projector(self.output, self.model, read)
            weights = ModelWeights(weights.around, self.plan)
        publish_result(self.output, weights, self.model, read)

    def _write(self, name: str, metrics: dict[str, Any]) -> None:
        if not _is_main() or not metrics:
            return
        copies = self.settings.training.metrics_output_path
        for folder in (self.output, *([Path(copies)] if copies else [])):
            folder.mkdir(parents=True, exist_ok=True)
            files.atomic_write(folder / name, json.dumps(metrics, indent=2, sort_keys=True) + "\n")

    def _farewell(self, stopped: str | None) -> None:
        training = self.settings.training
        if stopped:
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
            if _is_main():
                say_command(shown("chat", "--model-path", self.output, "--image-file", "PICTURE"))
        return None

    def _say(self, line: str) -> None:
        if _is_main():
            say(line)


def _overrides(settings: TrainingSettings) -> dict[str, Any]:
    model, data = settings.model, settings.data
    names = ("mm_projector_type", "mm_vision_select_layer", "mm_vision_select_feature", "mm_patch_merge_type",
             "mm_image_size", "mm_use_im_start_end", "mm_use_im_patch_token")  # fmt: skip
    found = {name: getattr(model, name) for name in names}
    found.update(image_aspect_ratio=data.image_aspect_ratio, image_grid_pinpoints=data.image_grid_pinpoints)
    return {name: value for name, value in found.items() if value is not None}


def _is_main() -> bool:
    """Whether this is the process that prints and writes."""
    return (env.raw("PADDLE_TRAINER_ID") or "0") == "0"


@contextlib.contextmanager
def library_output(output: Path) -> Iterator[None]:
    """What paddle and paddlenlp say while they are imported and set up goes to ``train.log``."""
    log = output / LOG_FILE
    redirect_library_logs(log)
    loud = sys.stderr
    with open(log, "a", encoding="utf-8") as stream, contextlib.redirect_stderr(stream):
        import paddlenlp.trainer  # noqa: F401 - imported here for its words
    sys.stderr = loud
    redirect_library_logs(log)
    yield
