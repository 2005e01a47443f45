# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with torch and transformers: loss and gradients of one row that shows a video.

    python video_worker.py FOLDER INPUTS.npz OUT.npz

INPUTS: ids and labels [T] with VIDEO where the frames stand, pixels [N, 3, S, S], names of the gradients wanted.
"""

import sys

import numpy as np
import torch
import transformers

VIDEO = -200
folder, inputs, out = sys.argv[1:]
given = np.load(inputs)
torch.set_num_threads(1)
model = transformers.LlavaOnevisionForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
pixels = torch.tensor(given["pixels"])[None]
with torch.no_grad():
    count = len(model.get_video_features(pixel_values_videos=pixels).pooler_output[0])
place = int(np.flatnonzero(given["ids"] == VIDEO)[0])
ids, labels = (
    np.concatenate([given[name][:place], np.full(count, fill), given[name][place + 1 :]])
    for name, fill in (("ids", model.config.video_token_index), ("labels", -100))
)
loss = model(input_ids=torch.tensor(ids)[None], labels=torch.tensor(labels)[None], pixel_values_videos=pixels).loss
loss.backward()
found = dict(model.named_parameters())
np.savez(
    out,
    loss=loss.detach().numpy(),
    count=count,
    **{str(name): found[str(name)].grad.numpy() for name in given["names"]},
)
