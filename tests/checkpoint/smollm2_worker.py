# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with torch and transformers: what SmolLM2 answers there.

    python smollm2_worker.py FOLDER INPUTS.json OUT.npz

INPUTS: {"texts": [a user's words], "new": tokens}. OUT: for each text its prompt's ids, scores and greedy ids.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

folder, inputs, out = sys.argv[1:]
asked = json.loads(Path(inputs).read_text(encoding="utf-8"))
torch.set_num_threads(1)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not info["missing_keys"], info["missing_keys"]
assert not info["unexpected_keys"], info["unexpected_keys"]
found = {}
for number, text in enumerate(asked["texts"]):
    turns = [{"role": "user", "content": text}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = ids["input_ids"]
    with torch.no_grad():
        found[f"scores{number}"] = model(ids).logits[0].numpy()
        new = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=asked["new"], eos_token_id=[]
        )
    found[f"prompt{number}"] = ids[0].numpy()
    found[f"answer{number}"] = new[0, ids.shape[1] :].numpy()
    found[f"plain{number}"] = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
np.savez(out, **found)
