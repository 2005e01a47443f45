"""Our side of the comparison with TRL: the tiny Llama of ``preference_rows`` under ``PreferenceTrainer``."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.datasets.build import make_collator
from paddlemix.datasets.preference import EncodedPair
from paddlemix.datasets.preprocess import Encoded
from paddlemix.imaging.processor import ImageProcessor, Processed
from paddlemix.models.llava import LlavaForCausalLM, build_empty, init_weights
from paddlemix.settings.model import LlavaConfig, TextConfig
from paddlemix.trainer.arguments import training_arguments
from paddlemix.trainer.preference import PreferenceTrainer
from paddlemix.trainer.stages import plan_stage
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from tests.tiny import tiny_image
from tests.trainer import preference_rows as shared
from tests.trainer.trainer_kit import PlainWeights, settings

CONFIG = LlavaConfig(
    text=TextConfig(
        shared.VOCABULARY, shared.WIDTH, shared.INNER, shared.LAYERS, shared.HEADS, shared.KEYS, rms_norm_eps=1e-5
    ),
    vision=None,
    image=None,
)


def ours(name: str) -> str:
    return name.replace("model.", "llama.", 1)


def theirs(name: str) -> str:
    return name.replace("llama.", "model.", 1)


def in_llava(name: str) -> str:
    """What transformers' LLaVA calls the parameter ``theirs(...)``."""
    if name.startswith("model.mm_projector."):
        layer, _, kind = name.removeprefix("model.mm_projector.").partition(".")
        return f"model.multi_modal_projector.linear_{int(layer) // 2 + 1}.{kind}"
    return name.replace("model.", "model.language_model.", 1)


def turned(name: str, value: np.ndarray) -> np.ndarray:
    """Linear weights have their axes the other way round here."""
    return value.T if value.ndim == 2 and "embed_tokens" not in name else value


def model() -> LlavaForCausalLM:
    found = build_empty(CONFIG)
    init_weights(found, 0)
    parameters = dict(found.named_parameters())
    values = shared.weights()
    assert set(parameters) == {ours(name) for name in values}
    for name, value in values.items():
        parameters[ours(name)].set_value(paddle.to_tensor(np.ascontiguousarray(turned(name, value))))
    return found


def encoded(prompt: list[int], answer: list[int], tiles: Processed | None = None) -> Encoded:
    ids = np.array([*prompt, *answer, shared.END], np.int64)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORE_INDEX
    pixels, layouts = (None, ()) if tiles is None else (tiles.pixels, (tiles.layout,))
    return Encoded(ids, labels, pixels, layouts, len(ids), "made up")


class Rows:
    reference: np.ndarray | None = None

    def __init__(self, case: str) -> None:
        if case == "kto":
            self.rows = [EncodedPair(encoded(p, a), None, len(p), good) for p, a, good in shared.singles()]
        else:
            self.rows = [EncodedPair(encoded(p, a), encoded(p, b), len(p)) for p, a, b in shared.pairs()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> EncodedPair:
        pair = self.rows[index]
        return pair if self.reference is None else dataclasses.replace(pair, reference=self.reference[index])


class PicturedRows(Rows):
    """The pairs, two of three with an image in front of the prompt."""

    def __init__(self, config: LlavaConfig) -> None:
        look, self.rows = ImageProcessor(config.image, config.vision), []
        for number, (prompt, chosen, rejected) in enumerate(shared.pairs()):
            tiles = look(tiny_image(number)) if number % 3 else None
            prompt = [IMAGE_TOKEN_INDEX, *prompt] if tiles is not None else prompt
            good, bad = (encoded(prompt, answer, tiles) for answer in (chosen, rejected))
            self.rows.append(EncodedPair(good, dataclasses.replace(bad, pixels=None), len(prompt)))

    def arrays(self, config: LlavaConfig, image_id: int) -> dict[str, np.ndarray]:
        """What transformers' model takes of each row: ids with an ``image_id`` for every patch, pixels."""
        found = {}
        for number, pair in enumerate(self.rows):
            for name, row in (("chosen", pair.chosen), ("rejected", pair.rejected)):
                patches = [image_id] * config.vision.tokens_per_tile
                ids = [part for token in row.ids.tolist() for part in (patches if token < 0 else [token])]
                found[f"{number}/{name}"] = np.array(ids)
                found[f"{number}/{name} answer"] = np.array(int((row.labels != IGNORE_INDEX).sum()))
            if pair.chosen.pixels is not None:
                found[f"{number}/pixels"] = pair.chosen.pixels
        return found


class Watched(PreferenceTrainer):
    """Keeps the gradients of each step, by transformers' names and axes."""

    def create_optimizer_and_scheduler(self, num_training_steps: int) -> None:
        super().create_optimizer_and_scheduler(num_training_steps)
        step, self.gradients = self.optimizer.step, []

        def watched() -> None:
            every = self.model.named_parameters()
            found = {name: value.grad.numpy() for name, value in every if value.grad is not None}
            self.gradients.append({theirs(name): turned(name, value).copy() for name, value in found.items()})
            step()

        self.optimizer.step = watched


def trainer(
    case: str, output: Path, kind: type = Watched, tuned: LlavaForCausalLM | None = None, rows: Rows | None = None,
    **changes: Any,
) -> Any:  # fmt: skip
    keys = dict(shared.LOSSES[case])
    run = settings(
        output, loss_type="sigmoid" if case == "rpo" else case, learning_rate=shared.RATE, lr_scheduler_type="constant",
        warmup_ratio=0.0, weight_decay=0.0, adam_epsilon=shared.EPSILON, max_grad_norm=0.0, num_train_epochs=1.0,
        per_device_train_batch_size=shared.rows_a_step(case), **keys,
    ).with_changes(**changes)  # fmt: skip
    tuned, rows = tuned or model(), rows or Rows(case)
    plan = plan_stage(tuned, run)
    plan.apply(tuned)
    made = kind(
        tuned, training_arguments(run), run, plan, make_collator(run, tuned.config), PlainWeights(),
        train_dataset=rows, order=lambda epoch: list(range(len(rows))), eval_dataset=rows,
    )  # fmt: skip
    made.before_training(lambda line: None)
    return made


def logged(made: Any) -> list[dict[str, float]]:
    return [entry for entry in made.state.log_history if "loss" in entry]
