# SPDX-License-Identifier: Apache-2.0
"""A model as two graphs: pixels to features, and a step of the decoder (a piece of a prompt, or one token).

One graph serves prompt and step, so the weights of the decoder are stored and held once. Its cache is given and only
read; the keys and values of the new places come back. Every size but those of the model is open.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import paddle
from paddle import Tensor, nn
from paddle.base.framework import EagerParamBase
from paddle.static import InputSpec

from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.models.llm.given_cache import GivenCache
from paddlemix.models.merge import merge_rows
from paddlemix.ops import few_rows, step_operator
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.attention.parted import BLOCKS
from paddlemix.ops.compat import without_false_alarms, without_writing_weights
from paddlemix.ops.linear import Fused
from paddlemix.ops.tracing import size, to_static
from paddlemix.utils.logging import get_logger

BY_OPERATOR = "_kernels"
"""Ends the name of the graph with operators that the machine compiles."""

LONG = 128
"""Places of a piece from which on it pays to cut it into blocks."""

Specs: TypeAlias = list[Any]
"""Input specs, lists of them included."""


def _by_operators(function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``function`` gives, traced by operators of ours.

    Not by a ``with`` in ``forward``: paddle's rewriting of it loses a return in there.
    """
    with few_rows.traced_by(step_operator):
        return function(*arguments)


class VisionGraph(nn.Layer):
    """Pixels to features: tower, then projector."""

    def __init__(self, model: LlavaForCausalLM, by_operator: bool = False) -> None:
        """``by_operator``: with those of ``ops.step_operator`` between the products."""
        super().__init__()
        self.tower, self.projector = model.llama.vision_tower, model.llama.mm_projector
        self.side, self.dtype, self.by_operator = model.config.vision.image_size, model.dtype, by_operator

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, D]``."""
        return _by_operators(self._features, pixels) if self.by_operator else self._features(pixels)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.projector(self.tower(pixels).astype(self.dtype))

    def specs(self) -> Specs:
        """The inputs."""
        return [InputSpec([None, 3, self.side, self.side], self.dtype, name="pixels")]


class TextGraph(nn.Layer):
    """Ids and features to the scores of the next id, and the keys and values of the new places."""

    def __init__(self, model: LlavaForCausalLM, by_operator: bool = False) -> None:
        """``by_operator``: with those of ``ops.step_operator``; a token is one of them, for all layers."""
        super().__init__()
        self.config, self.dtype, self.by_operator = model.config, model.dtype, by_operator
        self.llama = model.llama
        self._model = (model,)  # in a tuple: its layers are not this one's
        if not model.config.text.tie_word_embeddings:
            self.lm_head = model.lm_head

    def forward(
        self,
        token_ids: Tensor,
        source: Tensor,
        features: Tensor,
        blend_index: Tensor,
        blend_weight: Tensor,
        positions: Tensor,
        offset: Tensor,
        starts: Tensor,
        ends: Tensor,
        keys: list[Tensor],
        values: list[Tensor],
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Scores ``[B, V]`` and, of each layer, the keys and values ``[B, L, Hk, D]`` of the new places.

        Of the splice plan: ids ``[B, T]``, ``source`` and ``positions`` ``[B, L]``, feature rows ``[R, D]``, the blend
        (int64 and float32 ``[K, 4]``). Of each row, int64 ``[B]``: filled places of the cache, the first of them that
        counts, the place (of all B L) whose scores are wanted. The cache ``[B, Hk, M, D]`` of each layer.
        """
        width = self.config.text.hidden_size
        newline = self.llama.image_newline if self.config.has_image_newline else None
        words = self.llama.embed(token_ids)
        rows = merge_rows(source, words, features, newline, (blend_index, blend_weight))

        def step(
            rows: Tensor, positions: Tensor, ends: Tensor | None, blocks: int = 1
        ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
            # Cache and mask keep tensors, which those of another branch could not use.
            cache, mask = GivenCache(keys, values, offset, blocks), Mask(causal=True, key_starts=starts, offset=offset)
            hidden = self.llama.decode(rows, positions, mask, cache, ends)
            return self._model[0].logits(hidden.reshape([-1, width])), cache.new_keys, cache.new_values

        def one_place() -> tuple[Tensor, Tensor]:
            return rows.reshape([-1, 1, width]), positions.reshape([-1, 1])

        def token() -> tuple[Tensor, list[Tensor], list[Tensor]]:
            return step(*one_place(), None)

        def by_operator() -> tuple[Tensor, list[Tensor], list[Tensor]]:
            hidden, *new = self.llama.traced_step(*one_place(), (keys, values), offset, starts)
            return self._scores(hidden.reshape([-1, width])), *new

        def few_or_more() -> tuple[Tensor, list[Tensor], list[Tensor]]:
            return branch(size(source, 0) <= few_rows.MOST, by_operator, token)

        def piece() -> tuple[Tensor, list[Tensor], list[Tensor]]:
            return step(rows, positions, ends)

        # Three times in the graph, over the same weights. Where the length is known to be 1 fewer operators do and no
        # values change places; a long piece is cut into blocks, a short one could leave some of them empty.
        length, branch = size(source, 1), paddle.static.nn.cond
        in_blocks = partial(step, rows, positions, ends, BLOCKS)
        if not self.by_operator:
            return branch(length == 1, token, lambda: branch(length < LONG, piece, in_blocks))
        return _by_operators(branch, length == 1, few_or_more, piece)

    def _scores(self, hidden: Tensor) -> Tensor:
        """``[B, V]`` of few rows ``hidden`` [B, D]."""
        if self.config.text.tie_word_embeddings or self.config.text.vocab_size % few_rows.LANES:
            return self._model[0].logits(hidden)
        return step_operator.product(hidden, self.lm_head.weight)

    def specs(self) -> Specs:
        """The inputs."""
        rows, each = [None, None], [None]
        return [
            InputSpec(rows, "int64", name="token_ids"),
            InputSpec(rows, "int64", name="source"),
            InputSpec([None, self.config.text.hidden_size], self.dtype, name="features"),
            InputSpec([None, 4], "int64", name="blend_index"),
            InputSpec([None, 4], "float32", name="blend_weight"),
            InputSpec(rows, "int64", name="positions"),
            *(InputSpec(each, "int64", name=name) for name in ("offset", "starts", "ends")),
            self._cache("keys"),
            self._cache("values"),
        ]

    def _cache(self, what: str) -> list[InputSpec]:
        text = self.config.text
        shape = [None, text.num_key_value_heads, None, text.width_per_head]
        return [InputSpec(shape, self.dtype, name=f"{what}_{layer}") for layer in range(text.num_hidden_layers)]


@dataclass(frozen=True)
class Saved:
    """Inputs and outputs of a saved graph: name -> ``float32 [-1, 3, 336, 336]``, in its order."""

    inputs: dict[str, str]
    outputs: dict[str, str]


def save_vision(model: LlavaForCausalLM, prefix: Path, *, alone: bool = False) -> Saved:
    """Trace tower and projector and write ``prefix.json`` and ``prefix.pdiparams``.

    ``alone``: without the graph with operators beside it.
    """
    wide = model.config.vision.hidden_size >= few_rows.WIDE and model.dtype == "float32"
    if wide and model.runtime.device == "cpu" and not alone:
        _save_beside(lambda: VisionGraph(model, by_operator=True), prefix)
    graph = VisionGraph(model)
    places, width = model.config.vision.tokens_per_tile, model.config.text.hidden_size
    return _save(graph, graph.specs(), prefix, {"features": f"{model.dtype} [-1, {places}, {width}]"})


def save_text(model: LlavaForCausalLM, prefix: Path) -> Saved:
    """Trace the decoder and write it. ``model`` is used up: its tower is gone afterwards, its projections are fused."""
    text = model.config.text
    for name in ("vision_tower", "mm_projector"):
        model.llama._sub_layers.pop(name, None)  # or they would be written, too
    _own_fused(model.prepare_inference())
    new = f"{model.dtype} [-1, -1, {text.num_key_value_heads}, {text.width_per_head}]"
    outputs = {"scores": f"float32 [-1, {text.vocab_size}]"}
    for what in ("new_keys", "new_values"):
        outputs |= {f"{what}_{layer}": new for layer in range(text.num_hidden_layers)}
    graph = TextGraph(model)
    if model.llama.has_traced_step and model.dtype == "float32":
        _save_beside(lambda: TextGraph(model, by_operator=True), prefix)
    return _save(graph, graph.specs(), prefix, outputs)


def _save_beside(make: Callable[[], VisionGraph | TextGraph], prefix: Path) -> None:
    """The graph with operators of ours, without its weights: they are those of the graph without them."""
    reason = step_operator.why_not()
    second = prefix.with_name(prefix.name + BY_OPERATOR)
    if reason is not None:
        what = f"{second.name}.json is not written, so {prefix.name} will take longer everywhere"
        get_logger(__name__).warning(f"{what}: {reason}")
        return
    graph = make()
    with without_writing_weights():
        _save(graph, graph.specs(), second, {})
    second.with_suffix(".pdiparams").unlink(missing_ok=True)


def _own_fused(model: LlavaForCausalLM) -> None:
    """Fused projections become parameters with names of their own, and the layers that gave them their memory go."""
    for layer in model.llama.sublayers():
        fused = getattr(layer, "fused", None)
        if not isinstance(fused, Fused):
            continue
        for name, plain in list(layer._sub_layers.items()):
            if any(plain is one for one in fused.layers):
                del layer._sub_layers[name]
        for name in ("weight", "bias"):
            values = getattr(fused, name)
            if values is not None:
                parameter = EagerParamBase.from_tensor(values)
                layer.add_parameter(f"fused_{name}", parameter)
                setattr(fused, name, parameter)


def _save(graph: nn.Layer, specs: Specs, prefix: Path, outputs: dict[str, str]) -> Saved:
    for parameter in graph.parameters():
        parameter.stop_gradient = True
    with paddle.no_grad(), without_false_alarms():
        paddle.jit.save(to_static(graph, specs), str(prefix))
    flat = [one for spec in specs for one in (spec if isinstance(spec, list) else [spec])]
    inputs = {one.name: f"{str(one.dtype).rpartition('.')[2]} {list(one.shape)}" for one in flat}
    return Saved(inputs, outputs)
