# SPDX-License-Identifier: Apache-2.0
"""The peer of ``tools/bench.py``: the same work in HF transformers, as text for another interpreter.

It is text because this project never imports torch. The worker answers each line of stdin with CPU seconds by stage.
"""

WORKER = """
import json, sys, time
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

spec = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.set_grad_enabled(False)
vision = CLIPVisionConfig(
    hidden_size=spec["vision_width"], intermediate_size=spec["vision_ffn"], num_hidden_layers=spec["vision_layers"],
    num_attention_heads=spec["vision_heads"], image_size=spec["image"], patch_size=spec["patch"],
)
text = LlamaConfig(
    vocab_size=spec["vocab"], hidden_size=spec["width"], intermediate_size=spec["ffn"],
    num_hidden_layers=spec["layers"], num_attention_heads=spec["heads"], num_key_value_heads=spec["kv_heads"],
    max_position_embeddings=4096,
)
with torch.device("meta"):
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=5))
model = model.to_empty(device="cpu").eval()
generator = torch.Generator().manual_seed(0)
for name, parameter in model.named_parameters():
    if "norm" in name and name.endswith("weight"):
        parameter.fill_(1.0)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        parameter.normal_(0.0, 0.02, generator=generator)
for name, buffer in model.named_buffers():
    if name.endswith("position_ids"):
        buffer.copy_(torch.arange(buffer.shape[-1]).reshape(buffer.shape))
    elif name.endswith("inv_freq"):
        width = spec["width"] // spec["heads"]
        buffer.copy_(1.0 / 10000.0 ** (torch.arange(0, width, 2).float() / width))

side, length, new = spec["image"], spec["prompt"], spec["tokens"]
pixels = torch.randn(1, 3, side, side, generator=generator)
ids = torch.randint(6, spec["vocab"], (1, length + new), generator=generator)


def timed(action):
    begun = time.process_time()
    action()
    return time.process_time() - begun


def encode():
    features = model.get_image_features(pixel_values=pixels)
    features = getattr(features, "pooler_output", features)
    return features[0] if isinstance(features, (list, tuple)) else features


def feed(part, held):
    embeds = model.get_input_embeddings()(part)
    out = model.model.language_model(inputs_embeds=embeds, past_key_values=held, use_cache=True)
    token = model.lm_head(out.last_hidden_state[:, -1:]).argmax(-1).tolist()
    return out.past_key_values, token


cache = feed(ids[:, :length], None)[0] if spec["kind"] == "decode" else None
held = {rows: feed(ids[:, :length].repeat(rows, 1), None)[0] for rows in (1, 4)} if spec["kind"] == "batch" else {}


def decode():
    for index in range(new):
        feed(ids[:, length + index : length + index + 1], cache)


def step_of(rows):
    some = held[rows]
    if some.get_seq_length() > length:
        some.crop(length - some.get_seq_length())

    def action():
        for index in range(new):
            feed(ids[:, length + index : length + index + 1].repeat(rows, 1), some)

    return timed(action) / new


def work():
    kind = spec["kind"]
    if kind == "vision":
        return {"vision": timed(lambda: encode().sum().item())}
    if kind == "batch":
        return {f"step of {rows}": step_of(rows) for rows in held}
    if kind == "prefill":
        return {"prefill": timed(lambda: feed(ids[:, :length], None))}
    # Negative: the number of places to take away; every version of transformers reads it so.
    if cache.get_seq_length() > length:
        cache.crop(length - cache.get_seq_length())
    return {"decode": timed(decode) / new}


for _ in sys.stdin:
    print(json.dumps(work()), flush=True)
"""
"""Takes the shape as JSON in its first argument."""
