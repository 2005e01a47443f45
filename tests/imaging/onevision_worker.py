# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with torch and transformers: merged image features of LLaVA-OneVision's class.

    python onevision_worker.py FOLDER INPUTS.npz OUT.npz TILES...

FOLDER is a llava-hf folder of a LLaVA-NeXT, whose weights are those of the other class. INPUTS holds ``sizes`` (height,
width) and ``pixels_K`` for each; OUT gets ``features_N_K`` of each under ``anyres_max_N`` for every N of TILES.
"""

import sys

import numpy as np
import torch
from transformers import (
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
)


def main() -> None:
    folder, inputs, out, *tiles = sys.argv[1:]
    inputs = np.load(inputs)
    source = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    config = LlavaOnevisionConfig(
        vision_config=source.config.vision_config, text_config=source.config.text_config,
        image_token_id=source.config.image_token_id,
        vision_feature_layer=source.config.vision_feature_layer, vision_feature_select_strategy="default",
        image_grid_pinpoints=[list(pair) for pair in source.config.image_grid_pinpoints],
    )  # fmt: skip
    model = LlavaOnevisionForConditionalGeneration(config).float().eval()
    model.load_state_dict(source.state_dict(), strict=True)
    found = {}
    sizes = enumerate(inputs["sizes"])
    with torch.no_grad():
        for number, size, most in [(number, size, most) for number, size in sizes for most in tiles]:
            done = model.model.get_image_features(
                torch.from_numpy(inputs[f"pixels_{number}"])[None], torch.from_numpy(size)[None],
                vision_feature_layer=config.vision_feature_layer, vision_feature_select_strategy="default",
                vision_aspect_ratio=f"anyres_max_{most}",
            )  # fmt: skip
            found[f"features_{most}_{number}"] = done.pooler_output[0].numpy()
    np.savez(out, **found)


if __name__ == "__main__":
    main()
