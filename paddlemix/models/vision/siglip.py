# SPDX-License-Identifier: Apache-2.0
"""SigLIP: CLIP's blocks on patches with positions, without class token and pre-norm."""

from paddle import Tensor, nn

from paddlemix.models.vision.base import run_layers
from paddlemix.models.vision.clip import ClipLayers
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.settings.model import VisionConfig


class SiglipTransformer(nn.Layer):
    """Patches, positions of fixed number, and blocks. ``ln_post`` is kept because published files carry it."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel) -> None:
        super().__init__()
        width = config.hidden_size
        self.conv1 = nn.Conv2D(3, width, config.patch_size, stride=config.patch_size)
        self.positional_embedding = nn.Embedding(config.grid * config.grid, width)
        self.transformer = ClipLayers(config, parallel)
        self.ln_post = nn.LayerNorm(width, epsilon=config.layer_norm_eps)

    def embed(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, C]``, no norm (hidden state 0). Pixels beyond the last whole patch are left."""
        patches = self.conv1(pixels.astype(self.conv1.weight.dtype)).reshape([0, 0, -1]).transpose([0, 2, 1])
        return patches + self.positional_embedding.weight


class SiglipEncoder(nn.Layer):
    """Holds the transformer as ``vision_model`` (the name published files use)."""

    def __init__(self, config: VisionConfig, parallel: TensorParallel = ALONE) -> None:
        super().__init__()
        self.recompute = False
        self.vision_model = SiglipTransformer(config, parallel.on())

    def hidden_state(self, pixels: Tensor, layer: int) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, C]`` after ``layer`` blocks; the later blocks are not run."""
        return self.onward(self.vision_model.embed(pixels), 0, layer)

    def onward(self, hidden: Tensor, first: int, last: int) -> Tensor:
        """Hidden state ``first`` ``[N, P, C]`` through the blocks up to ``last``, to the same shape."""
        blocks = self.vision_model.transformer.layers[first:last]
        return run_layers(blocks, hidden, Mask(causal=False), self.recompute)
