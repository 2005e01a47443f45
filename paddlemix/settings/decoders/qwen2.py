# SPDX-License-Identifier: Apache-2.0
"""Qwen1.5, Qwen2 and Qwen2.5: Llama's layers with biases at q, k and v; the small ones tie head and embeddings."""

from paddlemix.settings.decoders.base import Decoder
from paddlemix.settings.decoders.llama import LLAMA_DEFAULTS, LLAMA_ROWS

_UNREAD = ("sliding_window", "attention_bias")

DECODER = Decoder(
    kind="qwen2",
    hf_class="Qwen2ForCausalLM",
    original_types=("llava_qwen",),
    original_class="LlavaQwenForCausalLM",
    # Defaults of transformers' Qwen2Config; it has none for the ids, which are those of the published models.
    defaults={
        **{key: value for key, value in LLAMA_DEFAULTS.items() if key not in _UNREAD},
        "vocab_size": 151936,
        "intermediate_size": 22016,
        "num_key_value_heads": 32,
        "max_position_embeddings": 32768,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    rows=LLAMA_ROWS,
    biased=("q_proj", "k_proj", "v_proj"),
    biased_by_key=(),
    expected={"use_sliding_window": (False, "attention over a window in some layers only is not supported")},
    # Published files name a window of 32768 to 131072 and switch it off.
    ignored=dict.fromkeys(("sliding_window", "max_window_layers"), "belongs to use_sliding_window"),
    template="qwen_1_5",
    gguf="qwen2",
)
