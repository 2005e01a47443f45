# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with torch, transformers and peft: a few steps of an adapter on a Llama.

    python methods_worker.py BASE INPUTS.npz RESULT.npz '{"method": {...}, "optimizer": "sgd", "rate": 0.1, ...}'

INPUTS holds ids, labels [B, L] and what A begins with (peft's own start is kept where it holds none). RESULT: losses,
the gradients of the first step and the values after the last one, as ``[in, out]``, and every adapted weight as it then
counts.
"""

import json
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

PREFIX = "base_model.model."


def name_of(name: str) -> str:
    """``model.layers.0.self_attn.q_proj.lora_A`` of peft's name of a parameter."""
    return name.removeprefix(PREFIX).replace(".default", "").removesuffix(".weight")


def built(model: torch.nn.Module, settings: dict) -> torch.optim.Optimizer:
    rate, decay = settings["rate"], settings["decay"]
    if settings.get("plus"):
        from peft.optimizers import create_loraplus_optimizer

        return create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=rate, loraplus_lr_ratio=settings["plus"], loraplus_weight_decay=decay
        )
    chosen = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(chosen, lr=rate)
    return torch.optim.AdamW(chosen, lr=rate, weight_decay=decay)


def main() -> None:
    base, inputs, settings = Path(sys.argv[1]), dict(np.load(sys.argv[2])), json.loads(sys.argv[4])
    model = transformers.LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "down_proj"], **settings["method"]))
    trained = {name_of(name): value for name, value in model.named_parameters() if value.requires_grad}
    with torch.no_grad():
        for name in set(trained) & set(inputs):
            trained[name].copy_(torch.from_numpy(inputs[name].T))
    optimizer = built(model, settings)
    ids, labels = (torch.from_numpy(inputs[name]) for name in ("ids", "labels"))
    found = {"start:" + name: value.detach().numpy().T.copy() for name, value in trained.items()}
    losses = []
    model.train()
    for step in range(settings["steps"]):
        loss = model(input_ids=ids, labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            found |= {"gradient:" + name: value.grad.numpy().T.copy() for name, value in trained.items()}
        optimizer.step()
    found |= {"end:" + name: value.detach().numpy().T.copy() for name, value in trained.items()}
    merged = model.merge_and_unload()
    layers = {name.rpartition(".lora_")[0] for name in trained}
    found |= {"weight:" + name: merged.get_submodule(name).weight.detach().numpy().T for name in layers}
    np.savez(sys.argv[3], losses=np.array(losses), **found)


if __name__ == "__main__":
    main()
