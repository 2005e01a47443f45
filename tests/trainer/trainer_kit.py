"""A tiny model, synthetic rows and a trainer around them: what the tests of this room share."""

from pathlib import Path
from typing import Any

import numpy as np
import paddle
from safetensors.numpy import load_file, save_file

from paddlemix.checkpoint.save import plain_values
from paddlemix.datasets.build import make_collator
from paddlemix.datasets.preprocess import Encoded
from paddlemix.imaging.layout import Layout
from paddlemix.models.llava import LlavaForCausalLM, build_empty, init_weights
from paddlemix.settings.model import ImageConfig, LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.trainer.divided import put
from paddlemix.trainer.lora_targets import add_adapters
from paddlemix.trainer.stages import plan_stage
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import DataError

VISION = VisionConfig(16, 32, 3, 2, image_size=8, patch_size=4)
CONFIG = LlavaConfig(
    text=TextConfig(64, 16, 32, 2, 2, 1),
    vision=VISION,
    image=ImageConfig(8, 8),
)
PATCHES = VISION.tokens_per_tile


def tiny(seed: int = 0, newline: bool = False, **text: Any) -> LlavaForCausalLM:
    config = CONFIG.with_changes(has_image_newline=newline)
    if text:
        import dataclasses

        config = config.with_changes(text=dataclasses.replace(config.text, **text))
    model = build_empty(config)
    init_weights(model, seed)
    return model


class Rows:
    """``count`` rows of equal or growing length; every third has no image. ``refused`` cannot be read."""

    def __init__(
        self, count: int = 12, equal: bool = False, poison: int | None = None, refused: int | None = None
    ) -> None:
        self.count, self.equal, self.poison, self.refused = count, equal, poison, refused
        self.lengths = [8 if equal else 6 + index % 4 for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Encoded:
        if index == self.refused:
            raise DataError(f"{self.where(index)}: no such image")
        rng = np.random.default_rng([7, index])
        with_image = self.equal or index % 3 != 2
        ids = rng.integers(3, 64, self.lengths[index])
        ids[0] = 1
        labels = ids.copy()
        labels[:3] = IGNORE_INDEX
        layouts: tuple[Layout, ...] = ()
        pixels = None
        if with_image:
            ids[1] = IMAGE_TOKEN_INDEX
            layouts = (Layout(1, np.arange(PATCHES)),)
            pixels = rng.standard_normal((1, 3, 8, 8)).astype(np.float32)
            if index == self.poison:
                pixels[:] = np.nan
        return Encoded(ids, labels, pixels, layouts, len(ids) + with_image * (PATCHES - 1))

    def where(self, index: int) -> str:
        return f"synthetic record {index}"


def collate(items: list[Encoded]) -> dict[str, np.ndarray]:
    """As a run of ``CONFIG`` does it."""
    return make_collator(TrainingSettings(), CONFIG)(items)


class PlainWeights:
    """Every parameter in one safetensors file: the shortest thing that is exact."""

    def save(self, folder: Path, model: Any, read: Any = plain_values) -> None:
        save_file({name: read(value) for name, value in model.named_parameters()}, folder / "model.safetensors")

    def load(self, folder: Path, model: Any) -> None:
        stored = load_file(folder / "model.safetensors")
        for name, value in model.named_parameters():
            put(value, paddle.to_tensor(stored[name]))


def settings(output: Path, **changes: Any) -> TrainingSettings:
    base = dict(
        model_name_or_path="tiny",
        output_dir=str(output),
        device="cpu",
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        num_train_epochs=2.0,
        warmup_ratio=0.3,
        lr_scheduler_type="cosine",
        logging_steps=1,
        save_strategy="no",
        weight_decay=0.1,
        lora_dropout=0.1,
        lora_rank=4,
        do_train=True,
        disable_tqdm=True,
    )
    return TrainingSettings().with_changes(**{**base, **changes})


def make_trainer(run: TrainingSettings, rows: Any = None, eval_rows: Any = None, model: Any = None, **more: Any) -> Any:
    from paddlemix.datasets.sampler import shuffled
    from paddlemix.trainer.arguments import training_arguments
    from paddlemix.trainer.llava_trainer import LlavaTrainer

    rows = Rows() if rows is None else rows
    arguments = training_arguments(run)
    if model is None:
        model = tiny()
        if run.model.lora:
            add_adapters(model, run)
    more.setdefault("order", shuffled(len(rows), run.training.seed))
    return LlavaTrainer(
        model,
        arguments,
        run,
        plan_stage(model, run),
        collate,
        PlainWeights(),
        train_dataset=rows,
        eval_dataset=eval_rows,
        **more,
    )


def weights(model: Any) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in model.named_parameters()}


def losses(trainer: Any) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
