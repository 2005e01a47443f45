# SPDX-License-Identifier: Apache-2.0
"""Models with another tower (InternViT, EVA-CLIP, SigLIP on Qwen2) on the stand-in: cases of ``worker.py``.

``python -m tests.npu_standin.towers CASE`` (``intern``, ``eva``, ``siglip``, ``record_intern``) prints a RESULT line.
"""

import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np

from paddlemix.models.llava import LlavaForCausalLM, init_weights
from paddlemix.settings.model import LlavaConfig
from tests.npu_standin import worker

EXTRA = {
    "intern_vit_6b": {"qkv_bias": False, "qk_normalization": True, "position_grid": 2},
    "siglip_vision_model": {},
    "eva_clip_vision_model": {"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": True},
}
KINDS = {"intern": "intern_vit_6b", "eva": "eva_clip_vision_model", "siglip": "siglip_vision_model"}


def config(kind: str) -> LlavaConfig:
    """The worker's model with another tower of the same sizes."""
    base = worker.config()
    act = "gelu_pytorch_tanh" if kind == "siglip" else "gelu"
    tower = replace(base.vision, model_type=KINDS[kind], hidden_act=act, extra=EXTRA[KINDS[kind]])
    text = replace(base.text, model_type="qwen2", tie_word_embeddings=True) if kind == "siglip" else base.text
    return replace(base, text=text, vision=tower)


def use(kind: str, *, recompute: bool = False) -> None:
    """Let the cases of ``worker.py`` build this model; norms and layer scales are not all ones or equal."""
    built = config(kind)

    def model(dtype: str = "float32") -> LlavaForCausalLM:
        made = LlavaForCausalLM(built)
        init_weights(made, 0)
        rng = np.random.default_rng(1)
        for name, parameter in made.named_parameters():
            if len(parameter.shape) == 1 and "vision_tower" in name:
                noise = rng.standard_normal(parameter.shape).astype(np.float32)
                parameter.set_value(parameter.numpy() + 0.1 * noise)
        if dtype != "float32":
            made.to(dtype=dtype)
        if recompute:
            made.enable_recompute()
        return made

    worker.model = model


def compared(kind: str) -> dict[str, Any]:
    """Two training steps of the whole model, plain and with recompute, on both devices."""
    found = {}
    for name, recompute in (("plain", False), ("recompute", True)):
        use(kind, recompute=recompute)
        found[name] = worker.compared("right")
    return found


def main(case: str) -> dict[str, Any]:
    """What a case found."""
    if case.startswith("record_"):
        use(case.removeprefix("record_"))
        return worker.case_record()
    return compared(case)


if __name__ == "__main__":
    result = main(sys.argv[1])
    print("RESULT " + json.dumps(result))
