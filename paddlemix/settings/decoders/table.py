# SPDX-License-Identifier: Apache-2.0
"""The table of decoders by ``TextConfig.model_type``: a new one is an import and a line here."""

from collections.abc import Iterable

from paddlemix.settings.decoders import llama, mistral, qwen2
from paddlemix.settings.decoders.base import Decoder
from paddlemix.utils.registry import Registry

DECODERS: Registry[Decoder] = Registry("decoder")
LLAVA_DECODER = llama.DECODER
"""The decoder of a config.json that does not say which."""
ONEVISION_DECODER = qwen2.DECODER
"""The same of transformers' LLaVA-OneVision."""


def register(decoder: Decoder) -> None:
    """Enter a decoder."""
    DECODERS.add(decoder.kind)(decoder)


def decoders() -> list[Decoder]:
    """All decoders, in the order of their registration."""
    return [DECODERS.get(kind) for kind in DECODERS]


def tokenizer_of(model_types: Iterable[str]) -> str:
    """The tokenizer that LLaVA loads for a config.json with these ``model_type``; the first that is known counts."""
    for name in model_types:
        for decoder in decoders():
            if name == decoder.kind or name in decoder.original_types:
                return decoder.tokenizer_for(name)
    return LLAVA_DECODER.tokenizer


for _decoder in (llama.DECODER, mistral.DECODER, qwen2.DECODER):
    register(_decoder)
