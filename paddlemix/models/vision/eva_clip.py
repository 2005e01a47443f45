# SPDX-License-Identifier: Apache-2.0
"""The EVA-CLIP vision transformer: CLIP without its first norm, with biases by choice, and norms that may come after.

The parameter names are those of ``clip.py``.
"""

import math

import paddle
from paddle import Tensor, nn

from paddlemix.models.vision.base import run_layers
from paddlemix.ops.activation import ACTIVATIONS
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.attention.select import attend
from paddlemix.ops.linear import Linear
from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.ops.tracing import size
from paddlemix.settings.model import VisionConfig


class EvaAttention(nn.Layer):
    """Every patch sees every patch. q, k and v have a bias only where the configuration says so."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        heads = parallel.share(config.num_attention_heads, "heads in the vision tower")
        self.heads, inner = heads.count, heads.times(self.head_dim)
        self.q_proj = Linear(width, inner, bias=config.extra["q_bias"])
        self.k_proj = Linear(width, inner, bias=config.extra["k_bias"])
        self.v_proj = Linear(width, inner, bias=config.extra["v_bias"])
        self.out_proj = Linear(inner, width)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """``[N, 1 + P, C]`` to the same shape."""
        x = self.parallel.copy_to_ranks(x)
        shape = [0, 0, self.heads, self.head_dim]  # 0: as it is
        q, k, v = (layer(x).reshape(shape) for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = attend(q, k, v, mask, scale=1.0 / math.sqrt(self.head_dim), runtime=self.parallel.runtime)
        return self.out_proj(out.reshape([0, 0, self.heads * self.head_dim]))


class EvaLayer(nn.Layer):
    """Attention and two linear layers, each normed before, or with ``post_layernorm`` behind (still before the sum)."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        self.after = config.extra["post_layernorm"]
        self.norm1 = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.self_attn = EvaAttention(config, parallel)
        self.norm2 = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        inner = parallel.share(config.intermediate_size, "places in the tower's MLP")
        self.linear1 = Linear(config.hidden_size, inner)
        self.linear2 = Linear(inner, config.hidden_size)
        self.act = ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """``[N, 1 + P, C]`` to the same shape."""
        if self.after:
            x = x + self.norm1(self.self_attn(x, mask))
            return x + self.norm2(self.mlp(x))
        x = x + self.self_attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))

    def mlp(self, x: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., C]``."""
        return self.linear2(self.act(self.linear1(self.parallel.copy_to_ranks(x))))


class EvaLayers(nn.Layer):
    """The stack of blocks; it exists for its name, ``transformer.layers.N``."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.layers = nn.LayerList([EvaLayer(config, parallel) for _ in range(config.num_hidden_layers)])


class EvaTransformer(nn.Layer):
    """Patches, class token, positions of fixed number, and blocks. ``ln_post`` only serves ``pooled``."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        width = config.hidden_size
        self.class_embedding = self.create_parameter([width])
        self.conv1 = nn.Conv2D(3, width, config.patch_size, stride=config.patch_size)
        self.positional_embedding = nn.Embedding(config.grid * config.grid + 1, width)
        self.transformer = EvaLayers(config, parallel)
        self.ln_post = nn.LayerNorm(width, epsilon=config.layer_norm_eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, 1 + P, C]``: class token first, no norm (hidden state 0)."""
        patches = self.conv1(pixels.astype(self.conv1.weight.dtype)).reshape([0, 0, -1]).transpose([0, 2, 1])
        first = self.class_embedding.reshape([1, 1, -1]).expand([size(patches, 0), 1, patches.shape[2]])
        return paddle.concat([first, patches], axis=1) + self.positional_embedding.weight


class EvaEncoder(nn.Layer):
    """Holds the transformer as ``vision_model`` (the name published files use)."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel = ALONE) -> None:
        super().__init__()
        self.layers = config.num_hidden_layers
        self.recompute = False
        self.vision_model = EvaTransformer(config, parallel.on())

    def hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, 1 + P, C]`` after ``layer`` blocks; the later blocks are not run."""
        blocks = self.vision_model.transformer.layers[:layer]
        return run_layers(blocks, self.vision_model.embed(pixels), Mask(causal=False), self.recompute)

    def pooled(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, C]``: the class token after all blocks and the post-norm."""
        return self.vision_model.ln_post(self.hidden_state(pixels, self.layers)[:, 0])
