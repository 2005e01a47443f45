# SPDX-License-Identifier: Apache-2.0
"""InternViT-6B, the vision transformer of InternVL-Chat: RMS norms, one norm over all heads of q and k, layer scale.

Below ``vision_tower`` the parameters keep InternViT's own names. Images may have any height and width: the position
grid is resized at every call, so one tower serves 224, 336 and 448 pixels.
"""

import math
from functools import lru_cache

import numpy as np
import paddle
from paddle import Tensor, nn

from paddlemix.models.vision.base import run_layers
from paddlemix.ops.activation import ACTIVATIONS
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.attention.select import attend
from paddlemix.ops.linear import Linear
from paddlemix.ops.norm import RMSNorm
from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.ops.tracing import size
from paddlemix.settings.model import VisionConfig

_CUBIC = -0.75  # the constant of the cubic kernel in torch's bicubic interpolation (most others use -0.5)


@lru_cache(maxsize=64)
def _axis(inner: int, outer: int) -> np.ndarray:
    """Weights ``[outer, inner]`` in float64 that resize one axis by cubic convolution.

    Half-pixel centres; places beyond the border read the border; without antialias, also when the grid shrinks.
    """
    weights = np.zeros((outer, inner))
    for place in range(outer):
        at = (place + 0.5) * inner / outer - 0.5
        first = math.floor(at)
        for offset in range(-1, 3):
            column = min(max(first + offset, 0), inner - 1)
            weights[place, column] += _cubic(abs(at - first - offset))
    return weights


def _cubic(distance: float) -> float:
    a, x = _CUBIC, distance
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


@lru_cache(maxsize=16)
def resize_matrix(side: int, grid: tuple[int, int]) -> np.ndarray:
    """Float32 ``[rows * columns, side * side]`` that takes a square grid of ``side`` to ``grid`` (rows, columns).

    Both grids are row by row. One dense product needs no gather and no interpolation kernel, forward or backward.
    """
    rows, columns = grid
    return np.kron(_axis(side, rows), _axis(side, columns)).astype(np.float32)


class InternVitEmbeddings(nn.Layer):
    """Patches behind a class token, plus positions that are resized to the image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        side = config.position_grid
        self.class_embedding = self.create_parameter([1, 1, width])
        self.position_embedding = self.create_parameter([1, 1 + side * side, width])
        self.patch_embedding = nn.Conv2D(3, width, patch, stride=patch)
        self._matrices: dict[tuple[int, tuple[int, int]], Tensor] = {}

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position rows ``[1, rows * columns, C]`` for ``grid`` (rows, columns), without the class token's.

        The side of the stored grid is read off the parameter: published chat models hold a table of 577 rows beside a
        config.json that says 224 pixels (256 + 1 rows). Computed in float32, returned in the parameter's dtype.
        """
        table = self.position_embedding[:, 1:]
        side = math.isqrt(table.shape[1])
        if grid == (side, side):
            return table  # the resize to the same size is exactly the identity
        resized = paddle.matmul(self._matrix(side, grid), table[0].astype("float32"))
        return resized.unsqueeze(0).astype(table.dtype)

    def _matrix(self, side: int, grid: tuple[int, int]) -> Tensor:
        """``resize_matrix`` on the device: kept, but for a constant of a graph that is being traced."""
        if not paddle.in_dynamic_mode():
            return paddle.to_tensor(resize_matrix(side, grid))
        if (side, grid) not in self._matrices:
            self._matrices[side, grid] = paddle.to_tensor(resize_matrix(side, grid))
        return self._matrices[side, grid]

    def forward(self, pixels: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, 1 + P, C]``; pixels behind the last whole patch are not looked at."""
        patches = self.patch_embedding(pixels.astype(self.patch_embedding.weight.dtype))
        grid = (patches.shape[2], patches.shape[3])
        rows = patches.reshape([0, 0, -1]).transpose([0, 2, 1])
        first = self.class_embedding.expand([size(rows, 0), 1, rows.shape[2]])
        added = paddle.concat([self.position_embedding[:, :1], self.positions(grid)], axis=1)
        return paddle.concat([first, rows], axis=1) + added


class InternVitAttention(nn.Layer):
    """One product for q, k and v; q and k are normed over their full width, before the heads are cut apart."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        width = config.hidden_size
        self.head_dim = width // config.num_attention_heads
        heads = parallel.share(config.num_attention_heads, "heads in the vision tower")
        self.heads, inner = heads.count, heads.times(self.head_dim)
        self.qkv = Linear(width, inner.repeated(3), bias=config.extra["qkv_bias"])
        self.q_norm = self.k_norm = None
        if config.extra["qk_normalization"]:
            self.q_norm = RMSNorm(inner, config.layer_norm_eps, parallel.runtime)
            self.k_norm = RMSNorm(inner, config.layer_norm_eps, parallel.runtime)
        self.proj = Linear(inner, width)

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """``[N, 1 + P, C]`` to the same shape."""
        inner = self.heads * self.head_dim
        # By sections: plug-ins are not known to split by number in bfloat16.
        q, k, v = paddle.split(self.qkv(self.parallel.copy_to_ranks(x)), [inner] * 3, axis=-1)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.reshape([0, 0, self.heads, self.head_dim]) for part in (q, k, v))  # 0: as it is
        out = attend(q, k, v, mask, scale=1.0 / math.sqrt(self.head_dim), runtime=self.parallel.runtime)
        return self.proj(out.reshape([0, 0, inner]))


class InternVitMlp(nn.Layer):
    """Two linear layers with an activation between them."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.parallel = parallel
        inner = parallel.share(config.intermediate_size, "places in the tower's MLP")
        self.fc1 = Linear(config.hidden_size, inner)
        self.fc2 = Linear(inner, config.hidden_size)
        self.act = ACTIVATIONS.get(config.hidden_act)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., C]``."""
        return self.fc2(self.act(self.fc1(self.parallel.copy_to_ranks(x))))


class InternVitLayer(nn.Layer):
    """Pre-norm block whose two branches are scaled by learnt vectors."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm1 = RMSNorm(width, config.layer_norm_eps, parallel.runtime)
        self.attn = InternVitAttention(config, parallel)
        self.norm2 = RMSNorm(width, config.layer_norm_eps, parallel.runtime)
        self.mlp = InternVitMlp(config, parallel)
        self.ls1 = self.create_parameter([width])
        self.ls2 = self.create_parameter([width])

    def forward(self, x: Tensor, mask: Mask) -> Tensor:
        """``[N, 1 + P, C]`` to the same shape."""
        x = x + self.attn(self.norm1(x), mask) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class InternVitLayers(nn.Layer):
    """The stack of blocks; it exists for its name, ``encoder.layers.N``."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        self.layers = nn.LayerList([InternVitLayer(config, parallel) for _ in range(config.num_hidden_layers)])


class InternVitEncoder(nn.Layer):
    """Embeddings and blocks. There is no norm before the first block and none behind the last."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel = ALONE) -> None:
        super().__init__()
        self.layers = config.num_hidden_layers
        self.recompute = False
        self.embeddings = InternVitEmbeddings(config)
        self.encoder = InternVitLayers(config, parallel.on())

    def hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, 1 + P, C]`` after ``layer`` blocks; the later blocks are not run."""
        blocks = self.encoder.layers[:layer]
        return run_layers(blocks, self.embeddings(pixels), Mask(causal=False), self.recompute)

    def pooled(self, pixels: Tensor) -> Tensor:
        """``[N, 3, H, W]`` to ``[N, C]``: the class token after all blocks, as it is."""
        return self.hidden_state(pixels, self.layers)[:, 0]
