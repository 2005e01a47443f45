# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with transformers: what a llava-hf folder makes of texts and conversations, as JSON on stdout.

    python hf_prompt_worker.py FOLDER '{"texts": [...], "messages": [...], "image": FILE}'

The processor is asked from transformers 4.46 on: the older ones know none of the keys of processor_config.json, in
published folders neither.
"""

import json
import sys
from pathlib import Path

import transformers
from PIL import Image


def once_a_picture(ids: list[int], image: int) -> list[int]:
    """The ids with one token for an image in place of one for each of its features."""
    return [number for at, number in enumerate(ids) if number != image or ids[at - 1] != image]


def main() -> None:
    folder, given = Path(sys.argv[1]), json.loads(sys.argv[2])
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    image = tokenizer.convert_tokens_to_ids("<image>")
    found = {"ids": [tokenizer(text).input_ids for text in given["texts"]]}
    chats = [
        tokenizer.apply_chat_template(row, tokenize=False, add_generation_prompt=True) for row in given["messages"]
    ]
    found["chats"] = chats
    found["chat_ids"] = [tokenizer(text).input_ids for text in chats]
    if version >= (4, 46):
        processor = transformers.AutoProcessor.from_pretrained(folder)
        out = processor(images=Image.open(given["image"]), text=given["texts"][0], return_tensors="np")
        ids = out["input_ids"][0].tolist()
        found["processed"] = once_a_picture(ids, image)
        found["features"] = ids.count(image)
        found["pixels"] = out["pixel_values"].reshape(-1).tolist()
        found["shown"] = [processor.apply_chat_template(row, add_generation_prompt=True) for row in given["messages"]]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
