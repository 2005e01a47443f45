# SPDX-License-Identifier: Apache-2.0
"""The CLIP vision transformer (openai ViT), by the parameter names of the Paddle checkpoints."""

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


class ClipAttention(nn.Layer):
    """Every patch sees every patch; all four projections have a bias."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        heads = parallel.share(config.num_attention_heads, "heads in the vision tower")
        self.heads, inner = heads.count, heads.times(self.head_dim)
        self.q_proj = Linear(width, inner)
        self.k_proj = Linear(width, inner)
        self.v_proj = Linear(width, inner)
        self.out_proj = Linear(inner, width)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """``[N, 1 + P, C]`` to the same shape."""
        x = self.parallel.copy_to_ranks(x)
        shape = [0, 0, self.heads, self.head_dim]  # 0: as it is
        q, k, v = (layer(x).reshape(shape) for layer in (self.q_proj, self.k_proj, self.v_proj))
        out = attend(q, k, v, mask, scale=1.0 / math.sqrt(self.head_dim), runtime=self.parallel.runtime)
        return self.out_proj(out.reshape([0, 0, self.heads * self.head_dim]))


class ClipLayer(nn.Layer):
    """Pre-norm block: attention, then two linear layers."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        self.norm1 = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        self.self_attn = ClipAttention(config, parallel)
        self.norm2 = nn.LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps)
        inner = parallel.share(config.intermediate_size, "places in the tower's MLP")
        self.linear1 = Linear(config.hidden_size, inner)
        self.linear2 = Linear(inner, config.hidden_size)
        self.act = ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """``[N, 1 + P, C]`` to the same shape."""
        x = x + self.self_attn(self.norm1(x), mask)
        return x + self.linear2(self.act(self.linear1(self.parallel.copy_to_ranks(self.norm2(x)))))


class ClipLayers(nn.Layer):
    """The stack of blocks; it exists for its name, ``transformer.layers.N``."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.layers = nn.LayerList([ClipLayer(config, parallel) for _ in range(config.num_hidden_layers)])


class ClipTransformer(nn.Layer):
    """Patches, class token, positions, pre-norm and blocks. ``ln_post`` only serves ``pooled``.

    ``ln_post`` and the blocks above the chosen layer are kept although LLaVA's features do not need them: published
    files carry them, and what is loaded must be given back.
    """

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.class_embedding = self.create_parameter([width])
        self.conv1 = nn.Conv2D(3, width, config.patch_size, stride=config.patch_size, bias_attr=False)
        self.positional_embedding = nn.Embedding(config.grid * config.grid + 1, width)
        self.ln_pre = nn.LayerNorm(width, epsilon=config.layer_norm_eps)
        self.transformer = ClipLayers(config, parallel)
        self.ln_post = nn.LayerNorm(width, epsilon=config.layer_norm_eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, 1 + P, C]``: class token first, after the pre-norm (hidden state 0)."""
        patches = self.conv1(pixels.astype(self.conv1.weight.dtype)).reshape([0, 0, -1]).transpose([0, 2, 1])
        first = self.class_embedding.reshape([1, 1, -1]).expand([size(patches, 0), 1, patches.shape[2]])
        return self.ln_pre(paddle.concat([first, patches], axis=1) + self.positional_embedding.weight)


class ClipEncoder(nn.Layer):
    """Holds the transformer as ``vision_model`` (the name published files use)."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel = ALONE) -> None:
        super().__init__()
        self.layers = config.num_hidden_layers
        self.recompute = False
        self.vision_model = ClipTransformer(config, parallel.on())

    def hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, 1 + P, C]`` after ``layer`` blocks; the later blocks are not run."""
        return self.onward(self.vision_model.embed(pixels), 0, layer)

    def onward(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Hidden state ``first`` ``[N, 1 + P, C]`` through the blocks up to ``last``, to the same shape."""
        blocks = self.vision_model.transformer.layers[first:last]
        return run_layers(blocks, hidden, Mask(causal=False), self.recompute)

    def pooled(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, C]``: the class token after all blocks and the post-norm. Not a LLaVA feature."""
        return self.vision_model.ln_post(self.hidden_state(pixels, self.layers)[:, 0])
