# SPDX-License-Identifier: Apache-2.0
"""Llama, and what is built like it: Vicuna and Yi."""

from paddlemix.settings.decoders.base import Decoder
from paddlemix.settings.key_rows import same

# Defaults of transformers' LlamaConfig.
LLAMA_DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "attention_bias": False,
    "tie_word_embeddings": False,
    "initializer_range": 0.02,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}

LLAMA_ROWS = (
    *same(
        (
            "embed_tokens.weight",
            "norm.weight",
            "layers.{n}.{input_layernorm|post_attention_layernorm}.weight",
            "layers.{n}.self_attn.{q_proj|k_proj|v_proj|o_proj}.bias",
        )
    ),
    *same(
        (
            "layers.{n}.self_attn.{q_proj|k_proj|v_proj|o_proj}.weight",
            "layers.{n}.mlp.{gate_proj|up_proj|down_proj}.weight",
        ),
        transpose=True,
    ),
)

DECODER = Decoder(
    kind="llama",
    hf_class="LlamaForCausalLM",
    original_types=("llava_llama", "llava", "share4v"),
    original_class="LlavaLlamaForCausalLM",
    defaults=LLAMA_DEFAULTS,
    rows=LLAMA_ROWS,
    # LLaVA's Vicuna models were trained and evaluated with it (a curious user); its command line chat uses
    # ``llava_v1`` (a curious human) instead. We take the training template everywhere, so that a prompt is what the
    # model has learnt from; ``llava_v1`` can be asked for.
    template="vicuna_v1",
    # Yi has 64000 tokens, Llama-3 128256 and SmolLM2 49152; llava-hf pads the table to a multiple of 64. No other
    # published LLaVA has these sizes.
    templates_by_vocabulary=(
        (range(64000, 64257), "chatml_direct"),
        (range(128256, 128513), "llava_llama_3"),
        (range(49152, 49409), "smollm2"),
    ),
    # ShareGPT4V and MV-LLaVA are pinned to transformers 4.31, whose slow tokenizer differs behind special tokens.
    tokenizers_by_type={"share4v": "slow_4_31"},
    class_decides=True,
    gguf="llama",
    gguf_pairs=True,
)
