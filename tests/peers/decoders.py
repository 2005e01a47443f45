# SPDX-License-Identifier: Apache-2.0
"""Tiny random language models, and what transformers computes with them.

    python tests/peers/decoders.py tests/data/decoders

Needs torch and transformers (5.24 made the files here). Writes the folders ``llama`` and ``qwen2``, and
``expected.npz``: of every kind of rotary positions the logits of one row, ids that are drawn greedily, and gradients.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

SIZES = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 16, "rms_norm_eps": 1e-5,
}  # fmt: skip
CLASSES = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
SCALINGS = {
    "default": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "rope_theta": 10000.0},
    "yarn_free": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.3,
                  "truncate": False, "rope_theta": 1000000.0},
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8, "rope_theta": 500000.0},
}  # fmt: skip
ROW = [int(number) for number in np.random.default_rng(7).integers(3, 96, 24)]
PROMPT, NEW = 10, 14
WATCHED = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.1.mlp.down_proj.weight",
    "model.norm.weight",
)


def build(kind: str, rope: dict) -> torch.nn.Module:
    """A model with the weights of ``kind`` and these rotary positions."""
    config, model = CLASSES[kind]
    torch.manual_seed(3)
    made = model(config(**SIZES, rope_parameters=dict(rope), tie_word_embeddings=kind == "qwen2", pad_token_id=None,
                        bos_token_id=1, eos_token_id=2)).float().eval()  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * drawn if "norm" in name else 0.25 * drawn)
    return made


def answer(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Logits, greedy ids and gradients of a model."""
    row = torch.tensor([ROW])
    found = model(input_ids=row, labels=row)
    found.loss.backward()
    grads = {name: value.grad for name, value in model.named_parameters() if name in WATCHED}
    with torch.no_grad():
        drawn = model.generate(row[:, :PROMPT], max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0)
    parts = {"logits": found.logits[0].detach(), "greedy": drawn[0, PROMPT:], "loss": found.loss.detach()}
    return {name: value.numpy() for name, value in {**parts, **grads}.items()}


def main(target: Path) -> None:
    """Write the folders and the numbers."""
    numbers = {"row": np.array(ROW), "prompt": np.array(PROMPT)}
    for kind in CLASSES:
        build(kind, SCALINGS["default"]).save_pretrained(target / kind)
        (target / kind / "generation_config.json").unlink(missing_ok=True)
        for name, rope in SCALINGS.items():
            found = answer(build(kind, rope))
            numbers |= {f"{kind}/{name}/{key}": value for key, value in found.items()}
    np.savez_compressed(target / "expected.npz", **numbers)
    (target / "scalings.json").write_text(json.dumps(SCALINGS, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
