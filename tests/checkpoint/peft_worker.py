# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with torch, transformers and peft: adapters on transformers' models, as JSON on stdout.

    python peft_worker.py open BASE ADAPTER INPUTS.npz       logits with the adapter beside and folded in
    python peft_worker.py make BASE ADAPTER INPUTS.npz METHOD    draws an adapter, saves it; its logits

BASE is a llava-hf folder or a Llama; the pixels of INPUTS are given to the first only.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import peft
import torch
import transformers


def load(folder: Path):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    name = {"llava": "LlavaForConditionalGeneration", "llama": "LlamaForCausalLM"}[kind]
    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32).eval()


def logits(model, inputs) -> list:
    ids = inputs["ids"]
    more = {}
    if (ids < 0).any():
        ids = np.where(ids < 0, model.config.image_token_id, ids)
        more["pixel_values"] = torch.from_numpy(inputs["pixels"])
    ids = torch.from_numpy(ids)[None]
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0].tolist()


METHODS = {
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa", "modules_to_save": None},  # its conversion leaves other tensors out
    "saved": {"modules_to_save": ["embed_tokens", "lm_head"]},
}


def make(base: Path, target: Path, inputs, method: str) -> dict:
    torch.manual_seed(5)
    model = load(base)
    eyes = hasattr(model.config, "vision_config")
    keys = {"modules_to_save": ["multi_modal_projector"] if eyes else None, **METHODS[method]}
    if method == "saved" and eyes:
        keys["target_modules"] = [r"q_proj", "up_proj", "linear_1"]  # of the tower and the projector, too
    settings = peft.LoraConfig(**{
        "r": 3, "lora_alpha": 12,
        "target_modules": r".*language_model.*\.(q_proj|up_proj)" if eyes else ["q_proj", "up_proj"], **keys,
    })  # fmt: skip
    model = peft.get_peft_model(model, settings).eval()
    if method == "pissa":
        model.save_pretrained(f"{target}-start")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    more = {"path_initial_model_for_weight_conversion": f"{target}-start"} if method == "pissa" else {}
    model.save_pretrained(target, **more)
    return {"beside": logits(model, inputs)}


def opened(base: Path, adapter: Path, inputs) -> dict:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns of keys that are missing
        model = peft.PeftModel.from_pretrained(load(base), adapter).eval()
    layers = [name for name, _ in model.named_modules() if name.endswith("lora_A.default")]
    beside = logits(model, inputs)
    return {"layers": len(layers), "beside": beside, "folded": logits(model.merge_and_unload(), inputs)}


def main() -> None:
    what, base, adapter, inputs = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), np.load(sys.argv[4])
    print(json.dumps({"open": opened, "make": make}[what](base, adapter, inputs, *sys.argv[5:])))


if __name__ == "__main__":
    main()
