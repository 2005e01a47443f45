# SPDX-License-Identifier: Apache-2.0
"""How much memory a training run needs on each card, and a chat, counted from the architecture and the settings.

An estimate for planning, made of countable things only; what a card really takes shows in npu-smi. Letters: w numbers
of the model, t of them train, N cards that share, B rows of a micro-batch, L positions of a row, n decoder layers, D
model width, V vocabulary.

    weights      2 w            (float32: 4 w)               / N with sharding stage3; preference tuning with a
                                reference: also a copy of what trains and is no new adapter
    gradients    4 t            (2 t without amp_master_grad) / N with stage2 and stage3
    optimizer    12 t           (float32 weights: 8 t)        / N with any sharding; 0 with offload
    kept         2 B L D n      one row of inputs for each recomputed layer; without recompute all of ``layer`` n times
    layer        the tensors of one decoder layer and their gradients, without the L x L scores of attention
    tower        the tensors of one layer of the vision tower (of all its layers when it trains)
    scores       13 B H L L     plain attention only: H heads, one layer at its peak in the backward pass; without
                                recompute another 6 B H L L is kept in each layer. Fused attention has none
    logits       16 x 1024 V    bf16 logits and their gradient, float32 copy, its softmax and its gradient, of a portion
                 + 6 D V        gradient of a head that trains, float32 and bf16. Without use_fused_head_and_loss_fn
                                (and with stage3) 16 B L V
    reserve      4 GB + 5 %     runtime, collectives, kernels, gaps between blocks (none between scores, few and large)

With tensor parallel over T cards, w and t are what lies on one card (the projector, the norms and one matrix of each
adapter are whole), the inner tensors of ``layer``, heads and logits are divided by T, and N counts groups of T cards.
Kept, layer and tower count half-precision values; a float32 run holds twice as much of them. Adapters lie on every
linear layer of the decoder. DoRA adds a length for each column to t, and to ``layer`` two more outputs of every linear
layer and three float32 copies of the widest weight; PiSSA adds to w what A and B began with; the modules that
``modules_to_save`` names belong to t. Preference tuning of pairs has two rows for each row of the data.
"""

from dataclasses import dataclass

from paddlemix.settings.model import LlavaConfig, TextConfig, VisionConfig
from paddlemix.settings.run.training import TrainingSettings

GB = 10**9
RESERVE, GAPS = 4 * GB, 0.05

SCORE_PEAK, SCORE_KEPT = 13, 6
"""Bytes for each score of plain attention: at the peak of its backward pass, and kept from the forward pass until then
(float32 softmax, its half-precision copy). Measured with paddle's own counter on the stand-in device: 12.3 to 13.0 and
6.3 to 6.5 in bfloat16, 12.6 to 13.0 and 4.6 to 5.0 in float32 (tests/npu_standin)."""


HEAD_PORTION = 1024
"""Positions whose logits ``use_fused_head_and_loss_fn`` has in memory at once."""


@dataclass(frozen=True)
class Counts:
    """Numbers (scalars) of each part of a model; ``adapters`` train, their ``starts`` (PiSSA) do not."""

    decoder: int
    projector: int
    tower: int
    adapters: int = 0
    starts: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.decoder + self.projector + self.tower + self.adapters + self.starts


@dataclass(frozen=True)
class Memory:
    """Bytes on one card."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    reserve: int
    scores: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.named.values())

    @property
    def named(self) -> dict[str, int]:
        """The parts by their names for a person, in the order of the table above."""
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "activations": self.activations,
            "scores of plain attention": self.scores,
            "logits": self.logits,
            "reserve": self.reserve,
        }


def count_parameters(config: LlavaConfig, lora_rank: int = 0, *, dora: bool = False, pissa: bool = False) -> Counts:
    """Numbers of a model, with adapters on every linear layer of the decoder when ``lora_rank`` is above 0."""
    text = config.text
    width, inner = text.hidden_size, text.intermediate_size
    heads, keys = text.num_attention_heads * text.width_per_head, text.num_key_value_heads * text.width_per_head
    linears = [(width, heads), (width, keys), (width, keys), (heads, width), (width, inner), (width, inner)]
    linears.append((inner, width))
    layer = sum(rows * columns for rows, columns in linears) + 2 * width
    biases = {"q_proj": heads, "k_proj": keys, "v_proj": keys, "o_proj": width}
    layer += sum(size for name, size in biases.items() if text.has_bias(name))
    decoder = text.num_hidden_layers * layer + width
    decoder += text.vocab_size * width * (1 if text.tie_word_embeddings else 2)
    adapters = text.num_hidden_layers * lora_rank * sum(rows + columns for rows, columns in linears)
    starts = adapters if pissa else 0
    adapters += text.num_hidden_layers * linear_outputs(text) if dora else 0
    if config.vision is None:
        return Counts(decoder, 0, 0, adapters, starts)
    return Counts(decoder, _projector(config), _tower(config.vision), adapters, starts)


def linear_outputs(text: TextConfig) -> int:
    """Numbers that the linear layers of one decoder layer give for a position."""
    heads, keys = text.num_attention_heads * text.width_per_head, text.num_key_value_heads * text.width_per_head
    return heads + 2 * keys + 2 * text.hidden_size + 2 * text.intermediate_size


def widest_weight(text: TextConfig) -> int:
    """Numbers of the largest weight of a decoder layer."""
    return text.hidden_size * max(text.intermediate_size, text.num_attention_heads * text.width_per_head)


def expected_memory(
    config: LlavaConfig, settings: TrainingSettings, cards: int, *, tiles: int = 1, plain_attention: bool = False
) -> Memory:
    """Bytes on each of ``cards`` cards when every row is ``max_length`` long and holds ``tiles`` tiles.

    ``plain_attention``: no fused attention serves, so the scores of a layer lie in memory.
    """
    model, data, training = settings.model, settings.data, settings.training
    together = max(training.tensor_parallel_degree, 1)
    counts = _on_one_card(config, settings, together)
    trained = _trained(counts, settings, config)
    half = (training.bf16 or training.fp16) and training.fp16_opt_level == "O2"
    shared = _sharing(training.sharding_parallel_degree, max(cards // together, 1))
    stage = next((word for word in training.sharding.split() if word.startswith("stage")), "")
    places = -(-data.max_length // max(training.sep_parallel_degree, 1))  # of a row, on one device
    images = training.per_device_train_batch_size
    rows, length = images * settings.preference.answers, places
    layer = _layer_bytes(config.text, together) * rows * length
    if model.lora and model.use_dora:
        layer += (8 * linear_outputs(config.text) * rows * length + 12 * widest_weight(config.text)) // together
    layers = config.text.num_hidden_layers
    kept = 2 * rows * length * config.text.hidden_size * layers + layer if training.recompute else layers * layer
    wide = 1 if training.bf16 or training.fp16 else 2
    parts = {
        "weights": counts.total * (2 if half else 4) // (shared if stage == "stage3" else 1)
        + reference_numbers(trained, counts.adapters, settings) * (2 if half else 4),
        "gradients": trained
        * (2 if half and not training.amp_master_grad else 4)
        // (shared if stage in ("stage2", "stage3") else 1),
        "optimizer": 0 if "offload" in training.sharding else trained * (12 if half else 8) // (shared if stage else 1),
        "activations": wide * (kept + _tower_bytes(config, settings, images * tiles)),
        "logits": _logit_bytes(config.text, settings, rows * length, together),
    }
    scores = _score_bytes(config, settings, tiles, together) if plain_attention else 0
    return Memory(**parts, reserve=RESERVE + int(GAPS * sum(parts.values())), scores=scores)


def chat_memory(config: LlavaConfig, value_bytes: int) -> int:
    """Bytes of the weights and of the cache of one conversation over the whole context; no reserve.

    ``value_bytes``: of one number, 4 for float32 and 2 for the half precisions.
    """
    text = config.text
    places = config.model_max_length * text.num_hidden_layers
    cached = 2 * places * text.num_key_value_heads * text.width_per_head
    return value_bytes * (count_parameters(config).total + cached)


def most_tiles(config: LlavaConfig) -> int:
    """Tiles of the image that is cut into most of them."""
    image = config.image
    if image is None or image.aspect != "anyres":
        return 1
    return 1 + max(width * height for width, height in image.grid_pinpoints) // image.crop_size**2


def _on_one_card(config: LlavaConfig, settings: TrainingSettings, together: int) -> Counts:
    """The numbers that each of ``together`` cards holds in tensor parallel, vectors aside."""
    model, text = settings.model, config.text
    rank = model.lora_rank if model.lora else 0
    counts = count_parameters(config, rank, dora=model.lora and model.use_dora, pissa=model.lora and model.pissa)
    # Of each adapter one matrix is whole: A below a layer whose columns are divided, B behind one whose rows are.
    whole = text.num_hidden_layers * rank * 7 * text.hidden_size
    adapters = whole + (counts.adapters - whole) // together
    starts = whole + (counts.starts - whole) // together if counts.starts else 0
    return Counts(counts.decoder // together, counts.projector, counts.tower // together, adapters, starts)


def _sharing(degree: int, cards: int) -> int:
    return cards if degree < 1 else min(degree, cards)


def _trained(counts: Counts, settings: TrainingSettings, config: LlavaConfig) -> int:
    model = settings.model
    if model.tune_mm_mlp_adapter:
        return counts.projector
    tower = 0
    if model.tune_entire_model or model.tune_vision_tower:
        tower = counts.tower
        if model.tune_vit_from_layer is not None and config.vision is not None and model.tune_vit_from_layer > 0:
            layers = config.vision.num_hidden_layers
            tower = tower * max(0, layers - model.tune_vit_from_layer) // layers
    if model.tune_vision_tower:
        return tower
    projector = 0 if model.freeze_mm_mlp_adapter else counts.projector
    if not model.lora:
        return tower + projector + counts.decoder
    table = config.text.vocab_size * config.text.hidden_size // max(settings.training.tensor_parallel_degree, 1)
    whole = table * sum(_saves(settings, name) for name in ("embed_tokens", "lm_head"))
    return tower + projector + counts.adapters + whole


def _saves(settings: TrainingSettings, module: str) -> bool:
    """Whether ``modules_to_save`` names the module."""
    named = settings.model.modules_to_save or ()
    return settings.model.lora and any(name.rpartition(".")[2] == module for name in named)


def reference_numbers(trained: int, adapters: int, settings: TrainingSettings) -> int:
    """Numbers that preference tuning keeps of the start of the run (``trainer.reference``).

    ``trained`` of the model train, ``adapters`` of them in adapters.
    """
    preference, model = settings.preference, settings.model
    if not preference.reference or preference.precompute_ref_log_probs:
        return 0
    return trained - (adapters if model.lora and not model.lora_path else 0)


def _projector(config: LlavaConfig) -> int:
    width, model = config.vision.feature_width if config.vision else 0, config.text.hidden_size
    newline = model if config.has_image_newline else 0
    if config.projector_type == "identity":
        return newline
    depth = int(config.projector_type[3]) if config.projector_type.startswith("mlp") else 1
    return (width + 1) * model + (depth - 1) * (model + 1) * model + newline


def _tower(vision: VisionConfig) -> int:
    """Towers of one size differ in a few vectors per layer, which is below one part in a thousand."""
    width, inner = vision.hidden_size, vision.intermediate_size
    layer = 4 * (width * width + width) + 2 * width * inner + inner + width + 4 * width
    places = vision.position_grid**2 + vision.class_tokens
    return vision.num_hidden_layers * layer + (3 * vision.patch_size**2 + places + 5) * width


def _layer_bytes(text: TextConfig, together: int) -> int:
    """Bytes per position of one decoder layer: two norms in float32, q k v and output, gate, up and their product."""
    heads, keys = text.num_attention_heads * text.width_per_head, text.num_key_value_heads * text.width_per_head
    inner = 2 * (2 * heads + 2 * keys) + 2 * 4 * text.intermediate_size
    return 2 * (2 * 4 * text.hidden_size + 2 * 2 * text.hidden_size + inner // together)


def _logit_bytes(text: TextConfig, settings: TrainingSettings, positions: int, together: int) -> int:
    divided = 1 if text.tie_word_embeddings else together
    if settings.training.fuses_head_and_loss or settings.preference.loss_type is not None:
        of_head = 6 * text.hidden_size if trains_head(text, settings) else 0
        return (16 * min(positions, HEAD_PORTION) + of_head) * text.vocab_size // divided
    return 16 * positions * text.vocab_size // divided


def trains_head(text: TextConfig, settings: TrainingSettings) -> bool:
    """Whether the output head trains: with the whole decoder, or because ``modules_to_save`` names it."""
    model = settings.model
    if _saves(settings, "embed_tokens" if text.tie_word_embeddings else "lm_head"):
        return True
    return not (model.lora or model.tune_mm_mlp_adapter or model.tune_vision_tower)


def _score_bytes(config: LlavaConfig, settings: TrainingSettings, tiles: int, together: int) -> int:
    """Scores of the decoder or of the tower, whichever are more: one has ended before the other begins."""
    images, length, vision = settings.training.per_device_train_batch_size, settings.data.max_length, config.vision
    rows = images * settings.preference.answers
    again = settings.training.recompute
    dealt = together * max(settings.training.sep_parallel_degree, 1)
    text = rows * -(-config.text.num_attention_heads // dealt) * length**2
    found = text * (SCORE_PEAK + (0 if again else SCORE_KEPT * (config.text.num_hidden_layers - 1)))
    if vision is None:
        return found
    one = images * tiles * -(-vision.num_attention_heads // together) * (vision.grid**2 + vision.class_tokens) ** 2
    first = max(settings.model.tune_vit_from_layer or 0, 0)
    trains = settings.model.tune_entire_model or settings.model.tune_vision_tower
    kept = vision.num_hidden_layers - first - 1 if trains and not again else 0
    return max(found, one * (SCORE_PEAK + SCORE_KEPT * kept))


def _tower_bytes(config: LlavaConfig, settings: TrainingSettings, tiles: int) -> int:
    vision = config.vision
    if vision is None:
        return 0
    trains = settings.model.tune_entire_model or settings.model.tune_vision_tower
    layer = (
        tiles * (vision.grid**2 + vision.class_tokens) * (2 * 8 * vision.hidden_size + 2 * 2 * vision.intermediate_size)
    )
    first = max(settings.model.tune_vit_from_layer or 0, 0)
    return layer * (vision.num_hidden_layers - first) * 2 if trains else layer
