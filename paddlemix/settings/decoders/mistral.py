# SPDX-License-Identifier: Apache-2.0
"""Mistral: Llama's layers with other defaults."""

from paddlemix.settings.decoders.base import Decoder
from paddlemix.settings.decoders.llama import LLAMA_DEFAULTS, LLAMA_ROWS

DECODER = Decoder(
    kind="mistral",
    hf_class="MistralForCausalLM",
    original_types=("llava_mistral",),
    original_class="LlavaMistralForCausalLM",
    # Defaults of transformers' MistralConfig.
    defaults={
        **LLAMA_DEFAULTS,
        "intermediate_size": 14336,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
    },
    rows=LLAMA_ROWS,
    template="mistral_instruct",
    tokenizer="fast",  # model/builder.py
    written_null=("sliding_window",),
    # LLaVA's trainer keeps norms out of the weight decay by a list of classes in which Mistral's norm was missing
    # (found in transformers 4.37.2), so the published Mistral recipes decay them. The numbers follow the original here.
    decays_norms=True,
    gguf="llama",
    gguf_pairs=True,
)
