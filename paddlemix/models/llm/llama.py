# SPDX-License-Identifier: Apache-2.0
"""The Llama decoder (Llama, Vicuna, Mistral, Yi): grouped-query attention, rotary positions, gated MLP."""

import math

import paddle
from paddle import Tensor, nn

from paddlemix.models.llm.cache import KVCache
from paddlemix.ops.activation import ACTIVATIONS
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.attention.select import attend
from paddlemix.ops.linear import Linear
from paddlemix.ops.norm import RMSNorm
from paddlemix.ops.rope import RotaryTables, rotate, widen
from paddlemix.settings.model import TextConfig
from paddlemix.utils.errors import ConfigError

Tables = tuple[Tensor, Tensor]


class LlamaAttention(nn.Layer):
    """Self-attention with ``Hk`` key heads shared by ``H`` query heads."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.width_per_head
        inner, bias = self.heads * self.head_dim, config.attention_bias
        self.q_proj = Linear(config.hidden_size, inner, bias=bias)
        self.k_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = Linear(inner, config.hidden_size, bias=bias)

    def forward(self, x: Tensor, tables: tuple[Tables, Tables], mask: Mask, cache: KVCache | None) -> Tensor:
        """``[B, L, D]`` to the same shape. ``tables`` are those of the query heads and of the key heads."""
        batch, length, _ = x.shape
        q = rotate(self.q_proj(x).reshape([batch, length, self.heads, self.head_dim]), tables[0])
        k = rotate(self.k_proj(x).reshape([batch, length, self.kv_heads, self.head_dim]), tables[1])
        v = self.v_proj(x).reshape([batch, length, self.kv_heads, self.head_dim])
        heads_first = False
        if cache is not None:
            k, v = cache.append(self.index, k, v)
            heads_first = cache.heads_first
        out = attend(q, k, v, mask, scale=1.0 / math.sqrt(self.head_dim), kv_heads_first=heads_first)
        return self.o_proj(out.reshape([batch, length, self.heads * self.head_dim]))


class LlamaMLP(nn.Layer):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.act = ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, L, D]`` to the same shape."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Layer):
    """Pre-norm block: attention, then MLP."""

    def __init__(self, config: TextConfig, index: int) -> None:
        super().__init__()
        self.self_attn = LlamaAttention(config, index)
        self.mlp = LlamaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, tables: tuple[Tables, Tables], mask: Mask, cache: KVCache | None = None) -> Tensor:
        """``[B, L, D]`` to the same shape."""
        x = x + self.self_attn(self.input_layernorm(x), tables, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class LlamaModel(nn.Layer):
    """Token table, blocks and final norm. LLaVA hangs tower, projector and newline into this layer by name."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        if config.num_attention_heads % config.num_key_value_heads:
            raise ConfigError(
                f"num_key_value_heads {config.num_key_value_heads} does not divide "
                f"num_attention_heads {config.num_attention_heads}"
            )
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.LayerList([LlamaLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTables(config.width_per_head, config.rope_theta, config.rope_scaling)
        self.recompute = False

    def embed(self, token_ids: Tensor) -> Tensor:
        """``[B, L]`` to ``[B, L, D]``. The row of the padding token gets no gradient, as in the reference.

        ``padding_idx`` of Paddle's own embedding is not used: it would also read that row as zeros.
        """
        rows = nn.functional.embedding(token_ids, self.embed_tokens.weight)
        pad = self.config.pad_token_id
        if pad is None or rows.stop_gradient:
            return rows
        return paddle.where((token_ids == pad).unsqueeze(-1), rows.detach(), rows)

    def decode(self, embeds: Tensor, positions: Tensor, mask: Mask, cache: KVCache | None = None) -> Tensor:
        """``[B, L, D]`` to ``[B, L, D]`` after the final norm. ``mask.offset`` is the length of the cache."""
        self._check(embeds, mask, cache)
        narrow = self.rotary.at(positions)
        config = self.config
        tables = (widen(narrow, config.num_attention_heads), widen(narrow, config.num_key_value_heads))
        hidden = embeds
        for layer in self.layers:
            if self.recompute and cache is None and paddle.is_grad_enabled():
                hidden = _recompute(layer, hidden, tables, mask)
            else:
                hidden = layer(hidden, tables, mask, cache)
        if cache is not None:
            cache.advance(embeds.shape[1])
        return self.norm(hidden)

    def _check(self, embeds: Tensor, mask: Mask, cache: KVCache | None) -> None:
        filled = 0 if cache is None else cache.length
        if mask.offset != filled:
            raise ConfigError(f"decode: the mask counts {mask.offset} cached places, the cache holds {filled}")
        window, end = self.config.sliding_window, filled + embeds.shape[1]
        if window is not None and end > window:
            raise ConfigError(
                f"sequence of {end} places: this model sees only the last {window} (sliding_window), which is not "
                'supported; shorten the sequence, or set "sliding_window": null if the model was trained without it'
            )


def _recompute(layer: LlamaLayer, hidden: Tensor, tables: tuple[Tables, Tables], mask: Mask) -> Tensor:
    from paddle.distributed.fleet.utils import recompute

    if hidden.stop_gradient:
        # Paddle passes no gradient at all into a recomputed layer whose inputs need none: with frozen embeddings and
        # projector the adapters of the layer would stay at their start without a word.
        hidden = hidden.detach()
        hidden.stop_gradient = False
    return recompute(layer, hidden, tables, mask)
