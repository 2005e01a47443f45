# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with torch and transformers: greedy ids of a converted folder, as JSON on stdout.

    python hf_worker.py FOLDER FORM INPUTS.npz TOKENS

FORM is llava-hf, or original, whose weights are put into transformers' classes by the names of its own converter.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import load_file


def of_hf(folder: Path):
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    cls = transformers.LlavaNextForConditionalGeneration if kind == "llava_next" else None
    cls = cls or transformers.LlavaForConditionalGeneration
    model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    assert not info["unexpected_keys"], info["unexpected_keys"]
    return model, model.config.image_token_id


def tensors(folder: Path) -> dict:
    return {name: value.float() for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def of_original(folder: Path):
    """LLaVA's own layout in transformers' classes: the language model as it is, tower and projector by their names."""
    raw = json.loads((folder / "config.json").read_text())
    weights = tensors(folder)
    tower_folder = folder / raw["mm_vision_tower"]
    tower_folder = tower_folder if tower_folder.is_dir() else folder.parents[1] / raw["mm_vision_tower"]
    vision = transformers.CLIPVisionConfig.from_pretrained(tower_folder)
    body = transformers.MistralConfig if raw["model_type"] == "llava_mistral" else transformers.LlamaConfig
    keys = [key for key in raw if not key.startswith("mm_") and "image" not in key]
    text = body(**{key: raw[key] for key in keys if key not in ("model_type", "architectures", "torch_dtype")})
    image_id = text.vocab_size
    text.vocab_size += 1
    anyres = raw.get("image_aspect_ratio") == "anyres"
    config = transformers.LlavaNextConfig if anyres else transformers.LlavaConfig
    more = {"image_grid_pinpoints": [[h, w] for w, h in raw["image_grid_pinpoints"]]} if anyres else {}
    layer = raw["mm_vision_select_layer"]
    settings = config(
        vision_config=vision, text_config=text, image_token_id=image_id, image_token_index=image_id,
        vision_feature_layer=layer, **more,
    )  # fmt: skip
    cls = transformers.LlavaNextForConditionalGeneration if anyres else transformers.LlavaForConditionalGeneration
    model = cls(settings).float()
    inside = "model.vision_tower.vision_tower.vision_model."
    if not any(name.startswith(inside) for name in weights):
        clip = transformers.CLIPVisionModel.from_pretrained(tower_folder, dtype=torch.float32).state_dict()
        weights |= {inside + name.removeprefix("vision_model."): value for name, value in clip.items()}
    state = {}
    own = list(model.state_dict())
    nested = any("vision_tower.vision_model." in name for name in own)
    tower = "model.vision_tower.vision_model." if nested else "model.vision_tower."
    for name, value in weights.items():
        new = name.replace(inside, tower).replace("model.mm_projector.0", "model.multi_modal_projector.linear_1")
        new = new.replace("model.mm_projector.2", "model.multi_modal_projector.linear_2")
        for part in ("layers", "embed_tokens", "norm"):
            if new.startswith(f"model.{part}."):
                new = f"model.language_model.{new.removeprefix('model.')}"
        if new in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            value = torch.cat([value, value.mean(0, keepdim=True)])
        state[new] = value
    state = {name: value for name, value in state.items() if "position_ids" not in name}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not [name for name in missing if "position_ids" not in name], missing
    assert not unexpected, unexpected
    return model, image_id


def main() -> None:
    folder, form, inputs, count = Path(sys.argv[1]), sys.argv[2], np.load(sys.argv[3]), int(sys.argv[4])
    model, image_id = of_hf(folder) if form == "llava-hf" else of_original(folder)
    model.eval()
    ids = torch.from_numpy(np.where(inputs["ids"] < 0, image_id, inputs["ids"]))[None]
    more = {}
    pixels = torch.from_numpy(inputs["pixels"])
    if "Next" in type(model).__name__:
        pixels, more = pixels[None], {"image_sizes": torch.from_numpy(inputs["size"])[None]}
    with torch.no_grad():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, max_new_tokens=count,
            do_sample=False, eos_token_id=None, pad_token_id=0, **more,
        )  # fmt: skip
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels, **more).logits
    print(json.dumps({"ids": out[0, ids.shape[1] :].tolist(), "logits": logits[0, -1, :50].tolist()}))


if __name__ == "__main__":
    main()
