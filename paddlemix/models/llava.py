# SPDX-License-Identifier: Apache-2.0
"""LLaVA: a vision tower and a projector beside a decoder, joined by the indices of the splice plan."""

import math
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlemix.models.head_loss import HeadForm, has_products, loss_through_head
from paddlemix.models.llm.build import build_decoder
from paddlemix.models.llm.cache import Cache, KVCache
from paddlemix.models.llm.static_cache import StaticCache
from paddlemix.models.loss import loss_of_parts, loss_of_targets, next_labels
from paddlemix.models.merge import merge_rows
from paddlemix.models.projector import build_projector
from paddlemix.models.sequence_loss import loss_of_part
from paddlemix.models.token_log_probs import log_probs_through_head, plain_log_probs
from paddlemix.models.vision.build import build_tower
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.linear import Linear, share_memory
from paddlemix.ops.low_bits.weights import Table
from paddlemix.ops.parallel import ALONE, TensorParallel, cut, whole_shape
from paddlemix.ops.runtime import Place, Runtime, kind_of_device
from paddlemix.ops.sequence import SequenceParallel
from paddlemix.ops.tracing import look_up
from paddlemix.settings.memory import HEAD_PORTION
from paddlemix.settings.model import LlavaConfig
from paddlemix.settings.towers.base import Tower
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.errors import BackendError, ConfigError


class LlavaForCausalLM(nn.Layer):
    """The whole model. Nothing in it asks the device for a value, and nothing loops over a batch.

    Parameter names are those of the Paddle checkpoints: ``llama.*`` (tower, projector and newline included) and
    ``lm_head.weight``, which tied models do not have. Linear weights are ``[in, out]``. With ``parallel`` the layers of
    decoder and tower, the token table and the head are slices (``ops.parallel``); projector and norms are whole.
    ``runtime`` (None: by the device that paddle is set to and the environment) decides by which kernels they compute.
    """

    def __init__(self, config: LlavaConfig, parallel: TensorParallel = ALONE, runtime: Runtime | None = None) -> None:
        super().__init__()
        self.config = config
        self.parallel = parallel = parallel.on(runtime)
        self.llama = build_decoder(config.text, parallel)
        if config.vision is not None:
            width = config.text.hidden_size
            self.llama.vision_tower = build_tower(config.vision, parallel)
            self.llama.mm_projector = build_projector(config.projector_type, config.vision.feature_width, width)
            if config.has_image_newline:
                self.llama.image_newline = self.llama.create_parameter([width])
        self.loss_portion = 0
        self.token_portion = HEAD_PORTION
        self.sequence: SequenceParallel | None = None
        self.neftune_alpha = 0.0
        self.bits: int | None = None
        if not config.text.tie_word_embeddings:
            self.vocabulary = parallel.share(config.text.vocab_size)
            self.lm_head = Linear(config.text.hidden_size, self.vocabulary, bias=False)

    @property
    def dtype(self) -> str:
        """Dtype in which the decoder computes."""
        return str(self.llama.norm.weight.dtype).rpartition(".")[2]

    def encode_images(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, D]``: tower, then projector."""
        if self.config.vision is None:
            raise ConfigError("the model has no vision tower, but pixels were given; load it with a tower")
        features = self.llama.vision_tower(pixels)
        return self.llama.mm_projector(features.astype(self.dtype))

    def embed(
        self,
        token_ids: Tensor,
        source: Tensor,
        features: Tensor | None,
        blend: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """``[B, L]`` ids and plan indices, ``[N, P, D]`` features or None, to ``[B, L, D]``; ``blend``: the plan's."""
        newline = self.llama.image_newline if self.config.has_image_newline else None
        words = self.llama.embed(token_ids)
        if self.training and self.neftune_alpha:
            # NEFTune (Jain et al. 2023), on the words alone, as the hook of transformers has it: uniform noise that
            # falls with the length and the width of a row.
            bound = self.neftune_alpha / math.sqrt(words.shape[1] * words.shape[2])
            words = words + paddle.uniform(words.shape, "float32", -bound, bound).astype(words.dtype)
        return merge_rows(source, words, features, newline, blend)

    def decode(self, embeds: Tensor, positions: Tensor, mask: Mask, cache: Cache | None = None) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]`` after the final norm; a cache is written and advanced by L."""
        return self.llama.decode(embeds, positions, mask, cache)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., V]`` in float32."""
        hidden = self.parallel.copy_to_ranks(hidden)
        if not self.config.text.tie_word_embeddings:
            return self.vocabulary.joined(self.lm_head(hidden).astype("float32"))
        own = self.llama.width.cut(hidden, -1) if self.parallel.size > 1 else hidden
        if isinstance(self.llama.embed_tokens, Table):
            return self.llama.embed_tokens.low_bits.product(own)
        product = paddle.matmul(own, self.llama.embed_tokens.weight, transpose_y=True)
        return self.parallel.sum_over_ranks(product.astype("float32"))

    def score_next(
        self, rows: Tensor, positions: Tensor, mask: Mask, cache: Cache | None, ends: Tensor | None = None
    ) -> Tensor:
        """Scores float32 ``[B, V]`` of the token behind ``rows`` [B, L, D], which the cache takes in.

        ``ends`` int64 [B]: the last place of each row among all ``B * L`` (None: the last column).
        """
        hidden = self.decode(rows, positions, mask, cache)
        if ends is None:
            return self.logits(hidden[:, -1])
        return self.logits(look_up(hidden.reshape([-1, hidden.shape[2]]), ends))

    @property
    def runtime(self) -> Runtime:
        """Where it computes, and by which kernels."""
        return self.parallel.runtime

    def new_cache(self, batch: int, capacity: int = 0) -> KVCache:
        """An empty KV cache for ``batch`` rows, with room for ``capacity`` places from the start."""
        return KVCache(self.config.text, batch, self.dtype, capacity, runtime=self.parallel.runtime)

    def new_static_cache(self, capacity: int) -> StaticCache:
        """An empty KV cache of a fixed size, whose rows have lengths of their own; the first step says how many."""
        return StaticCache(self.config.text.num_hidden_layers, capacity, self.dtype, self.parallel.runtime)

    def forward(
        self,
        token_ids: Tensor,
        source: Tensor,
        positions: Tensor,
        labels: Tensor | None = None,
        pixels: Tensor | None = None,
        starts: Tensor | None = None,
        segments: Tensor | None = None,
        blend_index: Tensor | None = None,
        blend_weight: Tensor | None = None,
        label_places: Tensor | None = None,
        places: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Mean loss over the labels if ``labels`` are given, else logits ``[B, L, V]``. Arguments: splice plan.

        ``label_places`` int64 [K]: the places among all B L whose next one has a label (``splice.plan.label_places``);
        the head is applied there only. None, and where devices share the places of rows: everywhere.
        With ``places`` and ``targets`` (int64 [K], places as b * L + l) the log-probabilities float32 [K] of those ids
        behind those places.

        Leave ``starts`` out unless the padding is on the left, and ``segments`` unless rows are packed: both make
        attention build a dense mask.
        """
        features = None if pixels is None else self.encode_images(pixels)
        blend = None if blend_index is None else (blend_index, blend_weight)
        sequence = None if labels is None else self.sequence
        mask = Mask(causal=True, key_starts=starts, segments=segments, sequence=sequence)
        if sequence is not None:
            moved = next_labels(labels, segments, starts)
            return loss_of_part(self, token_ids, source, positions, moved, features, blend, mask)
        hidden = self.decode(self.embed(token_ids, source, features, blend), positions, mask)
        if places is not None:
            return self._log_probs(paddle.gather(hidden.reshape([-1, hidden.shape[-1]]), places), targets)
        if labels is None:
            return self.logits(hidden)
        targets = next_labels(labels, segments, starts)
        if label_places is not None:
            hidden = look_up(hidden.reshape([-1, hidden.shape[-1]]), label_places).unsqueeze(0)
            targets = paddle.gather(targets.reshape([-1]), label_places).unsqueeze(0)
        return self.mean_loss(hidden, targets)

    def mean_loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Mean loss, a float32 scalar, of ``hidden`` [B, L, D] for int64 ``targets`` [B, L]."""
        tied, parallel = self.config.text.tie_word_embeddings, self.parallel
        if self.loss_portion and (tied or has_products(self.lm_head)):
            rows = parallel.copy_to_ranks(hidden).reshape([-1, hidden.shape[-1]])
            in_place = parallel.runtime.device == "cpu"
            if tied:
                rows = self.llama.width.cut(rows, -1) if parallel.size > 1 else rows
                products = [(rows, self.llama.embed_tokens.weight)]
                form = HeadForm(transposed=True, summed=parallel, in_place=in_place)
            else:
                products = self.lm_head.products(rows)
                form = HeadForm(vocabulary=self.vocabulary if parallel.size > 1 else None, in_place=in_place)
            return loss_through_head(products, targets.reshape([-1]), portion=self.loss_portion, form=form)
        if parallel.size > 1 and not tied:
            part = self.lm_head(parallel.copy_to_ranks(hidden)).astype("float32")
            return loss_of_parts(part, targets, self.vocabulary)
        return loss_of_targets(self.logits(hidden), targets)[0]

    def _log_probs(self, rows: Tensor, targets: Tensor) -> Tensor:
        tied = self.config.text.tie_word_embeddings
        plain = self.bits is None and (tied or type(self.lm_head) is Linear)
        if not self.token_portion or self.parallel.size > 1 or not plain:
            return plain_log_probs(self.logits(rows), targets)
        weight = self.llama.embed_tokens.weight if tied else self.lm_head.weight
        return log_probs_through_head(rows, weight, targets, transposed=tied, portion=self.token_portion)

    def prepare_inference(self) -> "LlavaForCausalLM":
        """Evaluation mode with fused projections. Undone by ``train()``, and by whatever asks for all parameters."""
        self.eval()
        self.llama.fuse()
        return self

    def train(self) -> None:
        """Training mode; fused projections become plain layers again. ConfigError for weights of few bits."""
        if self.bits is not None:
            raise ConfigError(f"the model holds weights of {self.bits} bits, which do not train; load it without them")
        self.llama.unfuse()
        super().train()

    def to(
        self,
        device: str | Place | None = None,
        *args: str | paddle.dtype | bool | None,
        **kwargs: str | paddle.dtype | bool | None,
    ) -> "LlavaForCausalLM":
        """As nn.Layer has it (device, dtype, ...; shapes stay).

        BackendError for a device of another kind than the model was made for: its kernels were chosen then, so it would
        compute by slow ones, or hand the fused ones memory that is not theirs.
        """
        kind, made_for = kind_of_device(device), self.parallel.runtime.device
        if kind not in (None, made_for):
            raise BackendError(
                f"the model was made for {made_for} and cannot move to {kind}: its kernels were chosen then. "
                f'Call paddle.set_device("{kind}") first, then make or load the model'
            )
        return super().to(device, *args, **kwargs)

    def named_parameters(self, prefix: str = "", include_sublayers: bool = True) -> Iterator[tuple[str, Tensor]]:
        """As nn.Layer has it (shapes: its own); fused projections become plain layers first, so all hold values."""
        self.llama.unfuse()
        return super().named_parameters(prefix, include_sublayers)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """As nn.Layer has it (shapes: the parameters'); fused projections become plain layers first."""
        self.llama.unfuse()
        return super().state_dict(*args, **kwargs)

    def share_rows(self, sequence: SequenceParallel) -> None:
        """Compute the loss of rows together with other devices, each some of their places. ConfigError: the heads."""
        sequence.check_heads(self.config.text.num_attention_heads, self.config.text.num_key_value_heads)
        self.sequence = sequence

    def enable_neftune(self, alpha: float) -> None:
        """Add noise to the embeddings of words in training mode, of at most ``alpha / sqrt(L D)``; 0: none."""
        self.neftune_alpha = alpha

    def fuse_head_and_loss(self, portion: int = HEAD_PORTION) -> None:
        """Compute the loss of so many positions at a time, without a table of all logits; 0: of all at once."""
        self.loss_portion = portion

    def enable_recompute(self, on: bool = True) -> None:
        """Keep only the input of each layer that trains for the backward pass, and compute the rest again."""
        self.llama.recompute = on
        if self.config.vision is not None:
            self.llama.vision_tower.vision_tower.recompute = on


def build_empty(
    config: LlavaConfig, parallel: TensorParallel = ALONE, runtime: Runtime | None = None
) -> LlavaForCausalLM:
    """The model without memory for its parameters; a loader or ``init_weights`` gives it to them."""
    with paddle.LazyGuard():
        return LlavaForCausalLM(config, parallel, runtime)


@paddle.no_grad()
def init_weights(model: LlavaForCausalLM, seed: int = 0, dtype: str = "float32") -> None:
    """Draw every parameter. A tensor's values depend on ``seed`` and its name only, not on the order."""
    norms = _norms(model)
    for name, parameter in model.named_parameters():
        shape = list(whole_shape(parameter))
        ones = name in norms and not name.endswith("bias")
        values = np.ones(shape, np.float32) if ones else _start_values(model.config, name, shape, seed)
        allocate(parameter, paddle.to_tensor(cut(parameter, values)).astype(dtype))


def allocate(parameter: Tensor, values: Tensor) -> None:
    """Give ``parameter`` the memory of ``values`` (same shape, any dtype; no copy); it may be without memory so far."""
    if list(parameter.shape) != list(values.shape):
        raise ConfigError(f"parameter {parameter.name}: shape {parameter.shape}, but the values are {values.shape}")
    share_memory(parameter, values)


def _norms(model: nn.Layer) -> set[str]:
    """Names of the parameters of norms."""
    layers = ((prefix, layer) for prefix, layer in model.named_sublayers() if type(layer).__name__.endswith("Norm"))
    return {f"{prefix}.{name}" for prefix, layer in layers for name, _ in layer.named_parameters()}


def _start_values(config: LlavaConfig, name: str, shape: list[int], seed: int) -> np.ndarray:
    """Zeros for biases, else normal values of the width that the family's own code uses."""
    if name.endswith("bias"):
        return np.zeros(shape, np.float32)
    tower = TOWERS.get(config.vision.model_type) if "vision_tower" in name else None
    for end, constant in tower.start_constants.items() if tower is not None else ():
        if name.endswith(end):
            return np.full(shape, constant, np.float32)
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32)
    values *= np.float32(_start_std(config, tower, name, shape))
    return values


def _start_std(config: LlavaConfig, tower: Tower | None, name: str, shape: list[int]) -> float:
    if tower is not None:
        return tower.start_std_of(name, config.vision.hidden_size, config.vision.num_hidden_layers)
    if name.endswith("image_newline"):
        return shape[0] ** -0.5
    if "mm_projector" in name:
        return (3 * shape[0]) ** -0.5  # the variance of torch's default, uniform in 1/sqrt(fan-in)
    return config.text.initializer_range
