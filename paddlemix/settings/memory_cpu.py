# SPDX-License-Identifier: Apache-2.0
"""How much memory a training run takes on a CPU, where it computes in float32: what lies there at the peak of a step.

It follows the operators of the models and what each keeps for its backward pass (counted with paddle's own counter;
tests/trainer/test_trainer_memory.py holds it against runs). In units of 4 bytes and of rows x width:

    decoder layer   2 rows of inputs of its norms, 2 of their outputs; in heads: queries, keys, values, the answer;
                    3 rows of the MLP (gate, up, their product)
    tower layer     the same by layer norm, where it trains; else one layer, while it is computed
    attention       the softmax of one block of 128 queries (a tower: of all) and its gradient, while it is computed
    around          embeddings, tables of positions, final norm; pixels, features, projector, merged table
    head and loss   logits of a portion (become their own gradient), gradient of a head that trains, rows; in
                    preference tuning three times the logits of a portion
    adapters        their narrow rows (twice with PiSSA); DoRA: the output of every linear layer and of its adapter

With recompute one row of each layer is kept, and the whole of one layer with its gradients. Weights (in
preference tuning with those of the reference) and two moments of AdamW stay from step to step. Gradients come while the
activations go and are freed behind the update, so of them only what is beyond the activations counts, unless a step
adds up several micro-batches or ``release_grads`` is off. The process itself (Python, paddle, data) is not counted.
"""

from dataclasses import dataclass

from paddlemix.settings.memory import HEAD_PORTION, Memory, linear_outputs, reference_numbers, trains_head
from paddlemix.settings.model import LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils import npu_environment

BLOCK = 128
"""Query rows of a block of ``ops.attention.sdpa``."""
FLOAT = 4
PROCESS = 450_000_000
"""Bytes of a process that has imported what a training needs and holds no tensor yet."""


@dataclass(frozen=True)
class Numbers:
    """Numbers (scalars) of a model with its adapters: all of them, those that train, and those of them in adapters."""

    total: int
    trained: int
    adapters: int = 0


@dataclass(frozen=True)
class BatchSize:
    """A batch as the model sees it: ``rows`` x ``length`` positions, ``labelled`` of which predict a label.

    In preference tuning the rows are those of all answers.
    """

    rows: int
    length: int
    tiles: int
    labelled: int
    packed: bool = False

    @property
    def positions(self) -> int:
        """All of them, padding included."""
        return self.rows * self.length


def computes_on_cpu(device: str | None, *, half: bool) -> bool:
    """Whether a run with this ``device`` is one of a CPU: named, or no half precision and no npu is asked for."""
    return device == "cpu" or (device is None and not half and not npu_environment.count_cards())


def memory_on_cpu(config: LlavaConfig, settings: TrainingSettings, batch: BatchSize, numbers: Numbers) -> Memory:
    """Bytes of tensors of one process at the peak of a step over ``batch``. In float32; no reserve."""
    model, training, text = settings.model, settings.training, config.text
    trains_tower = model.tune_entire_model or model.tune_vision_tower
    layer = _layer(text, batch)
    if model.lora and model.lora_dropout:
        layer += _dropped(text, batch)
    if model.lora:  # the narrow rows between A and B of seven linear layers
        layer += 7 * model.lora_rank * batch.positions * (2 if model.pissa else 1)
    if model.lora and model.use_dora:
        layer += 2 * linear_outputs(text) * batch.positions
    kept = _around(config, batch)
    if training.recompute:
        going = (text.num_hidden_layers - 1) * batch.positions * text.hidden_size
        slopes = batch.positions * (text.intermediate_size + text.hidden_size) - _head(text, settings, batch)
        # Its attention goes backward when the rows of its MLP are free.
        scores = _scores(text, batch) - 3 * batch.positions * text.intermediate_size
        kept += going + layer + max(slopes, scores, 0)
    else:
        going = text.num_hidden_layers * layer
        kept += going + _scores(text, batch)
    tower = _tower(config.vision, settings, batch, trains_tower) if config.vision is not None else 0
    kept = kept + tower if trains_tower else max(kept, tower)
    logits, gradients = _head(text, settings, batch), numbers.trained
    if training.releases_gradients and training.gradient_accumulation_steps == 1:
        gradients = max(gradients - going - logits, 0)
    return Memory(
        weights=(numbers.total + reference_numbers(numbers.trained, numbers.adapters, settings)) * FLOAT,
        gradients=gradients * FLOAT,
        optimizer=2 * numbers.trained * FLOAT,
        activations=kept * FLOAT,
        logits=logits * FLOAT,
        reserve=0,
    )


def _layer(text: TextConfig, batch: BatchSize) -> int:
    heads, keys = text.num_attention_heads * text.width_per_head, text.num_key_value_heads * text.width_per_head
    return batch.positions * (4 * text.hidden_size + 2 * heads + 2 * keys + 3 * text.intermediate_size)


def _scores(text: TextConfig, batch: BatchSize) -> int:
    """Softmax, its gradient and that of the scores, of the last block of queries of one layer."""
    rows = 1 if batch.packed else batch.rows  # rows with a mask of their own are computed one by one
    return 3 * rows * text.num_attention_heads * min(BLOCK, batch.length) * batch.length


def _dropped(text: TextConfig, batch: BatchSize) -> int:
    """In front of each adapter its own dropped rows and, one byte each, their mask."""
    heads = text.num_attention_heads * text.width_per_head
    return batch.positions * (5 * text.hidden_size + heads + text.intermediate_size) * 5 // 4


def _around(config: LlavaConfig, batch: BatchSize) -> int:
    text, positions = config.text, batch.positions
    heads = text.num_attention_heads * text.width_per_head
    found = positions * (4 * text.hidden_size + 2 * heads)
    if batch.packed:
        found += batch.rows * batch.length**2
    vision = config.vision
    if vision is None or not batch.tiles:
        return found
    patches = batch.tiles * vision.tokens_per_tile
    depth = int(config.projector_type[3]) if config.projector_type.startswith("mlp") else 1
    found += batch.tiles * 3 * vision.image_size**2
    found += patches * (vision.feature_width + (2 * depth - 1) * text.hidden_size)
    return found + (positions + patches) * text.hidden_size


def _tower(vision: VisionConfig, settings: TrainingSettings, batch: BatchSize, trains: bool) -> int:
    places = vision.grid**2 + vision.class_tokens
    rows, width, inner = batch.tiles * places, vision.hidden_size, vision.intermediate_size
    scores = batch.tiles * vision.num_attention_heads * places**2
    pixels = batch.tiles * 3 * vision.image_size**2
    if not trains:  # one layer: its attention, or its MLP
        return pixels + rows * 2 * width + max(rows * 5 * width + 3 * scores, rows * 3 * inner)
    layers = vision.num_hidden_layers - max(settings.model.tune_vit_from_layer or 0, 0)
    layer = rows * (10 * width + 3 * inner)
    if settings.training.recompute:
        return pixels + layers * rows * width + layer + 3 * scores
    return pixels + layers * layer + 3 * scores


def _head(text: TextConfig, settings: TrainingSettings, batch: BatchSize) -> int:
    labelled, width = max(batch.labelled, 1), text.hidden_size
    of_head = width * text.vocab_size if trains_head(text, settings) else 0
    if settings.preference.loss_type is not None:  # logits of a portion, their softmax and its slope
        several = of_head if labelled > HEAD_PORTION else 0
        logits = min(labelled, HEAD_PORTION) * text.vocab_size
        return max(3 * logits + several, logits + 2 * of_head) + 2 * labelled * width
    if settings.training.fuses_head_and_loss:
        return min(labelled, HEAD_PORTION) * text.vocab_size + of_head + 2 * labelled * width
    return 2 * labelled * text.vocab_size + of_head + labelled * width
