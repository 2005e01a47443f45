# SPDX-License-Identifier: Apache-2.0
"""Greedy ids of a llava-hf folder in vLLM, as JSON on stdout.

    python vllm_worker.py FOLDER INPUTS.json

INPUTS: {"prompts": [text with "<image>"], "images": [paths, as many], "new": tokens}. Out: {"ids": [ids]}.
"""

import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def main(folder: str, inputs: str) -> None:
    from PIL import Image
    from vllm import LLM, SamplingParams

    asked = json.loads(Path(inputs).read_text())
    model = LLM(folder, dtype="float32", enforce_eager=True, max_model_len=400, max_num_seqs=1)
    sampling = SamplingParams(temperature=0, max_tokens=asked["new"], ignore_eos=True)
    rows = [
        {"prompt": prompt, "multi_modal_data": {"image": Image.open(image).convert("RGB")}}
        for prompt, image in zip(asked["prompts"], asked["images"], strict=True)
    ]
    print(json.dumps({"ids": [list(found.outputs[0].token_ids) for found in model.generate(rows, sampling)]}))


if __name__ == "__main__":
    main(*sys.argv[1:])
