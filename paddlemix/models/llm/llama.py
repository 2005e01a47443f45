# SPDX-License-Identifier: Apache-2.0
"""The Llama decoder (Llama, Vicuna, Mistral, Yi, Qwen2): grouped-query attention, rotary positions, gated MLP."""

import math
from collections.abc import Sequence
from dataclasses import replace

import paddle
from paddle import Tensor, nn

from paddlemix.models.llm.cache import Cache
from paddlemix.models.recompute import recomputed
from paddlemix.ops import few_rows, step_operator
from paddlemix.ops.activation import ACTIVATIONS, gated, silu
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.attention.select import ATTENTION, attend
from paddlemix.ops.linear import Fused, Linear
from paddlemix.ops.norm import RMSNorm
from paddlemix.ops.parallel import ALONE, TensorParallel, mark
from paddlemix.ops.rope import RotaryTables, StepTables
from paddlemix.ops.tracing import look_up, size
from paddlemix.ops.whole_step import Parts, Seen, WholeStep, table_of
from paddlemix.settings.model import TextConfig
from paddlemix.utils.device import LARGE_GRADIENTS, give_memory_back
from paddlemix.utils.errors import ConfigError


class LlamaAttention(nn.Layer):
    """Self-attention with ``Hk`` key heads shared by ``H`` query heads."""

    def __init__(self, config: TextConfig, index: int, parallel: TensorParallel) -> None:
        super().__init__()
        self.index = index
        self.parallel = parallel
        self.head_dim = config.width_per_head
        self.scale = 1.0 / math.sqrt(self.head_dim)
        # Whole groups: the query heads go where the key head is that they share.
        kv_heads = parallel.share(config.num_key_value_heads, "key and value heads")
        group = config.num_attention_heads // config.num_key_value_heads
        self.heads, self.kv_heads = kv_heads.count * group, kv_heads.count
        inner, inner_kv = kv_heads.times(group * self.head_dim), kv_heads.times(self.head_dim)
        self.q_proj = Linear(config.hidden_size, inner, bias=config.has_bias("q_proj"))
        self.k_proj = Linear(config.hidden_size, inner_kv, bias=config.has_bias("k_proj"))
        self.v_proj = Linear(config.hidden_size, inner_kv, bias=config.has_bias("v_proj"))
        self.o_proj = Linear(inner, config.hidden_size, bias=config.has_bias("o_proj"))
        self.fused: Fused | None = None

    def forward(
        self, x: Tensor, tables: StepTables, mask: Mask, cache: Cache | None, ends: Tensor | None = None
    ) -> Tensor:
        """``[B, L, D]`` to the same shape, or to ``[B, 1, D]`` where ``ends`` says which places (``decode``)."""
        x = self.parallel.copy_to_ranks(x)
        together = self.fused is not None and self.fused.serves(x)
        q, k, v = self._project_fused(x, tables) if together else self._project(x, tables)
        heads_first = False
        if cache is not None:
            k, v = cache.append(self.index, k, v)
            heads_first = cache.heads_first
        if ends is not None:
            mask = replace(mask, offset=mask.offset + ends % size(q, 1), _kept={})
            q = _at(q.reshape([0, 0, self.heads * self.head_dim]), ends).reshape([0, 0, self.heads, self.head_dim])
        runtime = self.parallel.runtime
        out = attend(q, k, v, mask, scale=self.scale, runtime=runtime, kv_heads_first=heads_first)
        return self.o_proj(out.reshape([0, 0, self.heads * self.head_dim]))

    def _project(self, x: Tensor, tables: StepTables) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q_proj(x).reshape([0, 0, self.heads, self.head_dim])  # 0: as it is
        k = self.k_proj(x).reshape([0, 0, self.kv_heads, self.head_dim])
        v = self.v_proj(x).reshape([0, 0, self.kv_heads, self.head_dim])
        return tables.turn(q), tables.turn(k), v

    def _project_fused(self, x: Tensor, tables: StepTables) -> tuple[Tensor, Tensor, Tensor]:
        """One product for all three, one rotation for the heads of q and k together."""
        return tables.split(self.fused(x), self.heads, self.kv_heads)

    def fuse(self) -> None:
        """Use one product for q, k and v from now on (inference). Layers with an open adapter stay apart."""
        layers = (self.q_proj, self.k_proj, self.v_proj)
        if self.fused is None and Fused.can(layers):
            self.fused = Fused(layers)

    def unfuse(self) -> None:
        """Plain layers again."""
        if self.fused is not None:
            self.fused.release()
            self.fused = None


class LlamaMLP(nn.Layer):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        inner = parallel.share(config.intermediate_size, "places in the MLP")
        self.gate_proj = Linear(config.hidden_size, inner, bias=False)
        self.up_proj = Linear(config.hidden_size, inner, bias=False)
        self.down_proj = Linear(inner, config.hidden_size, bias=False)
        self.act = ACTIVATIONS.get(config.hidden_act)
        self.fused: Fused | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same shape."""
        x = self.parallel.copy_to_ranks(x)
        if self.fused is not None and self.fused.serves(x):
            gate, up = self.fused(x), None
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gated(self.act, gate, up, self.parallel.runtime))

    def fuse(self) -> None:
        """Use one product for gate and up from now on (inference). Layers with an open adapter stay apart."""
        layers = (self.gate_proj, self.up_proj)
        if self.fused is None and Fused.can(layers):
            self.fused = Fused(layers)

    def unfuse(self) -> None:
        """Plain layers again."""
        if self.fused is not None:
            self.fused.release()
            self.fused = None


class LlamaLayer(nn.Layer):
    """Pre-norm block: attention, then MLP."""

    def __init__(self, config: TextConfig, index: int, parallel: TensorParallel) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, index, parallel)
        self.mlp = LlamaMLP(config, parallel)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, parallel.runtime)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, parallel.runtime)

    def forward(
        self, x: Tensor, tables: StepTables, mask: Mask, cache: Cache | None = None, ends: Tensor | None = None
    ) -> Tensor:
        """``[B, L, D]`` to the same shape, or to ``[B, 1, D]`` where ``ends`` says which places (``decode``)."""
        attended = self.self_attn(self.input_layernorm(x), tables, mask, cache, ends)
        x = (x if ends is None else _at(x, ends)) + attended
        return x + self.mlp(self.post_attention_layernorm(x))

    def parts(self, index: int) -> Parts | None:
        """What it computes with as layer ``index``, for ``ops.whole_step``.

        None where it has another form or place: adapters, hooks, another gate, the cache of another layer.

        Asked in every step, so sublayers are taken from where they are kept.
        """
        own = self._sub_layers
        attn, mlp, norm, second = (own[name] for name in _LAYER)
        out, down = attn._sub_layers["o_proj"], mlp._sub_layers["down_proj"]
        if attn.fused is None or mlp.fused is None or mlp.act is not silu or attn.index != index:
            return None
        if any(type(one) is not Linear or one.sums for one in (out, down)):
            return None
        for one in (self, attn, mlp, norm, second, out, down):
            if one._forward_pre_hooks or one._forward_post_hooks or "forward" in one.__dict__:
                return None
        return Parts(norm, attn.fused, out, second, mlp.fused, down)


_LAYER = ("self_attn", "mlp", "input_layernorm", "post_attention_layernorm")


def _at(x: Tensor, ends: Tensor) -> Tensor:
    """``x`` [B, L, D] at the place int64 ``ends`` [B] (of all B L) of each row: ``[B, 1, D]`` in the dtype of x."""
    return look_up(x.reshape([-1, x.shape[2]]), ends).unsqueeze(1)


class LlamaModel(nn.Layer):
    """Token table, blocks and final norm. LLaVA hangs tower, projector and newline into this layer by name."""

    def __init__(self, config: TextConfig, parallel: TensorParallel = ALONE) -> None:
        super().__init__()
        if config.num_attention_heads % config.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads {config.num_key_value_heads} does not divide "
                f"num_attention_heads {config.num_attention_heads}"
            )
        self.config = config
        parallel = parallel.on()
        # Cut along the width and not along the vocabulary, whose size need not divide: no id is looked for elsewhere.
        self.width = parallel.share(config.hidden_size)
        self.embed_tokens = nn.Embedding(config.vocab_size, self.width.count)
        mark(self.embed_tokens.weight, 1, self.width)
        self.layers = nn.LayerList([LlamaLayer(config, index, parallel) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, parallel.runtime)
        longest = config.max_position_embeddings
        self.rotary = RotaryTables(
            config.width_per_head, config.rope_theta, config.rope_scaling, parallel.runtime, longest
        )
        self.recompute = False
        self._runtime = parallel.runtime
        self._on_cpu = parallel.runtime.device == "cpu"
        self._step = WholeStep()

    def embed(self, token_ids: Tensor) -> Tensor:
        """``[B, L]`` to ``[B, L, D]``. The row of the padding token gets no gradient, as in the reference.

        ``padding_idx`` of Paddle's own embedding is not used: it would also read that row as zeros.
        """
        # Through the layer: with sharding stage3 its weight is there only while it runs.
        rows = self.width.joined(self.embed_tokens(token_ids))
        if rows.stop_gradient:
            return rows
        table = self.embed_tokens.weight
        if self._on_cpu and not table.stop_gradient and 4 * table.size >= LARGE_GRADIENTS:
            rows.register_hook(_before_the_table)
        pad = self.config.pad_token_id
        if pad is None:
            return rows
        return paddle.where((token_ids == pad).unsqueeze(-1), rows.detach(), rows)

    def decode(
        self, embeds: Tensor, positions: Tensor, mask: Mask, cache: Cache | None = None, ends: Tensor | None = None
    ) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]`` after the final norm. ``mask.offset`` is that of the cache.

        ``ends`` int64 [B]: the one place of each row (of all B L) that is wanted, to ``[B, 1, D]``. For the others the
        last layer computes keys and values alone. Only with a cache, and without ``key_lengths`` and ``segments``.
        """
        self._check(embeds, mask, cache)
        tables = self.rotary.step(positions)
        hidden = None if cache is None or ends is not None else self._whole_step(embeds, tables, mask, cache)
        if hidden is None:
            hidden = self._layer_by_layer(embeds, tables, mask, cache, ends)
        if cache is not None:
            cache.advance(size(embeds, 1))
        return self.norm(hidden)

    def _layer_by_layer(
        self, hidden: Tensor, tables: StepTables, mask: Mask, cache: Cache | None, ends: Tensor | None
    ) -> Tensor:
        for layer in self.layers:
            if self.recompute and cache is None and paddle.is_grad_enabled():
                hidden = recomputed(layer, hidden, tables, mask)
            else:
                hidden = layer(hidden, tables, mask, cache, ends if layer is self.layers[-1] else None)
        return hidden

    def _whole_step(self, embeds: Tensor, tables: StepTables, mask: Mask, cache: Cache) -> Tensor | None:
        """``[B, 1, D]`` behind the last layer by ``ops.whole_step``; None where it does not serve the step."""
        if embeds.shape[1] != 1 or not few_rows.may_serve() or not mask.causal or not cache.heads_first:
            return None
        if mask.segments is not None or mask.sequence is not None:
            return None
        parts = self._parts()
        held = None if parts is None else cache.room()
        if held is None:
            return None
        seen, first = Seen(mask.offset, mask.key_starts, mask.key_lengths), self.layers[0].self_attn
        return self._step(parts, embeds, (tables.cos, tables.sin), held, seen, first.heads, first.scale)

    def _parts(self) -> list[Parts] | None:
        """Those of all layers; None if one has another form, on other devices, and where attention is forced."""
        if not self._on_cpu or self._runtime.asks(ATTENTION.name):
            return None
        found = []
        for index, layer in enumerate(self.layers):
            parts = layer.parts(index)
            if parts is None:
                return None
            found.append(parts)
        return found

    @property
    def has_traced_step(self) -> bool:
        """Whether ``traced_step`` serves this model where there are kernels: joined for inference, on a CPU."""
        config, parts = self.config, self._parts()
        sizes = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.width_per_head
        return parts is not None and table_of(parts, *sizes) is not None

    def traced_step(
        self,
        embeds: Tensor,
        positions: Tensor,
        held: tuple[Sequence[Tensor], Sequence[Tensor]],
        offset: Tensor,
        starts: Tensor,
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """In a graph: ``[B, 1, D]`` after the final norm, and the step's keys and values ``[B, 1, Hk, D]`` a layer.

        ``embeds`` are [B, 1, D], the others as ``ops.step_operator.step`` has them: one operator for all layers.
        """
        tables, first = self.rotary.step(positions), self.layers[0].self_attn
        given = embeds, (tables.cos, tables.sin), self._parts(), held, offset, starts, first.heads, first.scale
        hidden, keys, values = step_operator.step(*given)
        return self.norm(hidden), keys, values

    def fuse(self) -> None:
        """One product for q, k, v and one for gate, up in every layer, for inference."""
        for layer in self.layers:
            layer.self_attn.fuse()
            layer.mlp.fuse()

    def unfuse(self) -> None:
        """Plain layers again, as training and saving need them."""
        self._step = WholeStep()  # what it knows would keep the joined weights
        for layer in self.layers:
            layer.self_attn.unfuse()
            layer.mlp.unfuse()

    def _check(self, embeds: Tensor, mask: Mask, cache: Cache | None) -> None:
        filled = 0 if cache is None else cache.offset
        if mask.offset is not filled and (not isinstance(filled, int) or mask.known_offset != filled):
            raise ConfigError(
                f"decode: the mask counts {mask.offset} cached places, the cache holds {filled}; give the mask "
                "the offset of the cache"
            )
        window = self.config.sliding_window
        devices = 1 if mask.sequence is None else mask.sequence.size
        end = filled + embeds.shape[1] * devices if isinstance(filled, int) else cache.capacity
        if window is not None and end > window:
            raise ConfigError(
                f"sequence of {end} places: this model sees only the last {window} (sliding_window), which is not "
                'supported; shorten the sequence, or set "sliding_window": null if the model was trained without it'
            )


def _before_the_table(slope: Tensor) -> None:
    """The largest gradient of a decoder comes last, when all others are there: not on top of what lies free."""
    del slope  # stays as it is
    give_memory_back()
