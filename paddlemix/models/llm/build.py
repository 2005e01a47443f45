# SPDX-License-Identifier: Apache-2.0
"""From the configuration of a language model to its layers; ``settings/decoders/table.py`` is the table."""

from paddle import nn

from paddlemix.ops.parallel import ALONE, TensorParallel
from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.model import TextConfig
from paddlemix.utils.registry import named


def build_decoder(config: TextConfig, parallel: TensorParallel = ALONE) -> nn.Layer:
    """The decoder that ``config.model_type`` names ; ConfigError lists the known ones."""
    return named(DECODERS.get(config.model_type).model)(config, parallel)
