# SPDX-License-Identifier: Apache-2.0
"""Measure a training step on a CPU: all weights and LoRA, forward, backward, clipping and AdamW.

    python tools/bench.py train [--shape tiny|mid] [--methods full,lora] [--labelled N] [--repeat N] [--peer PYTHON]
        [--json FILE]

One row of ``prompt`` places with an image, of whose places the last ``--labelled`` have a label (default: all text
behind the image); float32, random weights. The vision tower is frozen and the projector trains, as in LLaVA-1.5; lora
is of rank 64 on all linear layers of the decoder. Ours: collator, model, clip and AdamW as the trainer puts them
together. With --peer HF transformers (and peft) does the same: forward, backward, ``clip_grad_norm_``,
``torch.optim.AdamW``, ``zero_grad``. Each contestant is a process of its own with one thread, all asked in turn. Time
is CPU time and, beside it, the wall clock; memory is the peak of the whole process during the steps.
"""

import argparse
import inspect
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

AIMS = {"full": 0.95, "lora": 1.0}
"""CPU time of a step over that of the peer."""
MEMORY_AIM = 0.9
RANK, ALPHA = 64, 128


def _status(name: str) -> int:
    with open("/proc/self/status") as handle:
        return next(int(line.split()[1]) * 1024 for line in handle if line.startswith(name + ":"))


def measured(step: Callable[[], float]) -> dict[str, float]:
    """Seconds of CPU and wall clock of one step, the peak of this process in bytes, and the loss."""
    with open("/proc/self/clear_refs", "w") as handle:
        handle.write("5")  # the peak counts from here
    wall, cpu = time.perf_counter(), time.process_time()
    loss = step()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"cpu": cpu, "wall": wall, "bytes": _status("VmHWM"), "loss": loss}


PEER = (
    "import json, sys, time\nfrom collections.abc import Callable\n"
    + inspect.getsource(_status)
    + inspect.getsource(measured)
    + """
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

spec = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
vision = CLIPVisionConfig(
    hidden_size=spec["vision_width"], intermediate_size=spec["vision_ffn"], num_hidden_layers=spec["vision_layers"],
    num_attention_heads=spec["vision_heads"], image_size=spec["image"], patch_size=spec["patch"],
)
text = LlamaConfig(
    vocab_size=spec["vocab"], hidden_size=spec["width"], intermediate_size=spec["ffn"],
    num_hidden_layers=spec["layers"], num_attention_heads=spec["heads"], num_key_value_heads=spec["kv_heads"],
    max_position_embeddings=4096,
)
model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_index=5))
model.config.use_cache = False
if spec["method"] == "lora":
    from peft import LoraConfig, get_peft_model

    names = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"
    targets = r".*language_model.*\\.(" + names + ")"
    model = get_peft_model(model, LoraConfig(r=spec["rank"], lora_alpha=spec["alpha"], target_modules=targets))
for name, parameter in model.named_parameters():
    if "multi_modal_projector" in name:
        parameter.requires_grad_(True)
    elif "vision_tower" in name:
        parameter.requires_grad_(False)
model.train()
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)
pixels = torch.randn(1, 3, spec["image"], spec["image"])
patches, length = (spec["image"] // spec["patch"]) ** 2, spec["prompt"]
text = torch.randint(6, spec["vocab"], (length - patches - 1,))
ids = torch.cat([torch.tensor([1]), torch.full((patches,), 5), text])
labels = torch.where(torch.arange(length) < length - spec["labelled"], -100, ids)[None]
ids = ids[None]


def step():
    loss = model(input_ids=ids, pixel_values=pixels, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(loss)


for _ in sys.stdin:
    print(json.dumps(measured(step)), flush=True)
"""
)
"""The peer, as text for another interpreter: this project never imports torch. Takes the spec as JSON."""


def work(spec: dict[str, Any]) -> Callable[[], dict[str, float]]:
    """A trainer over random rows; the returned function takes one step: seconds, and bytes of the process' peak."""
    import numpy as np

    from paddlemix.utils.device import lasting_blocks, tune_cpu, tune_training

    tune_cpu()
    tune_training()
    import paddle

    from paddlemix.datasets.build import make_collator
    from paddlemix.datasets.preprocess import Encoded
    from paddlemix.imaging.layout import Layout
    from paddlemix.models.llava import build_empty, init_weights
    from paddlemix.settings.run.training import TrainingSettings
    from paddlemix.splice.plan import label_places
    from paddlemix.trainer.clip import GlobalNormClip
    from paddlemix.trainer.lora_targets import add_adapters
    from paddlemix.trainer.optimization import build_optimizer, build_schedule
    from paddlemix.trainer.stages import plan_stage
    from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
    from tools.bench import model_config

    keys = {"model_name_or_path": "bench", "device": "cpu", "per_device_train_batch_size": 1, "learning_rate": 1e-5}
    if spec["method"] == "lora":
        keys |= {"lora": True, "lora_rank": spec["rank"], "lora_alpha": spec["alpha"], "lora_dropout": 0.0}
    run = TrainingSettings().with_changes(**keys, weight_decay=0.0, max_grad_norm=1.0, lr_scheduler_type="constant")
    model = build_empty(model_config(spec))
    with lasting_blocks():
        init_weights(model, seed=0)
    if run.model.lora:
        add_adapters(model, run)
    plan = plan_stage(model, run)
    plan.apply(model)
    model.fuse_head_and_loss()
    model.train()
    clip = GlobalNormClip(run.training.max_grad_norm, note=lambda norm: None)
    optimizer = build_optimizer(model, plan, run.training, build_schedule(run.training, 1000), clip)

    rng = np.random.default_rng(0)
    patches = model.config.vision.tokens_per_tile
    ids = rng.integers(6, spec["vocab"], spec["prompt"] - patches + 1)
    ids[:2] = 1, IMAGE_TOKEN_INDEX
    labels = np.where(np.arange(len(ids)) < len(ids) - spec["labelled"], IGNORE_INDEX, ids)
    pixels = rng.standard_normal((1, 3, spec["image"], spec["image"]), dtype=np.float32)
    row = Encoded(ids, labels, pixels, (Layout(1, np.arange(patches)),), spec["prompt"])
    collate = make_collator(run, model.config)

    def step() -> float:
        arrays = collate([row])
        places = label_places(arrays["labels"], arrays.get("segments"), arrays.get("starts"))
        batch = {name: paddle.to_tensor(value) for name, value in {**arrays, "label_places": places}.items()}
        loss = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        return float(loss)

    return lambda: measured(step)


def measure(method: str, spec: dict[str, Any], repeat: int, peer: str | None) -> dict[str, list[dict[str, float]]]:
    """What each contestant told of each step after the first, which warms up; in turn."""
    from tools.bench import Contestant

    spec = {**spec, "kind": "train", "method": method, "rank": RANK, "alpha": ALPHA}
    with ExitStack() as stack:
        ours = [sys.executable, str(Path(__file__).with_name("bench.py")), "--worker"]
        contestants = [Contestant("ours", ours, spec)]
        if peer:
            contestants.append(Contestant("peer", [peer, "-W", "ignore", "-c", PEER], spec))
        for contestant in contestants:
            stack.callback(contestant.close)
            contestant.ask()
        for _ in range(repeat):
            for contestant in contestants:
                contestant.times.append(contestant.ask())
    return {contestant.name: contestant.times for contestant in contestants}


def report(method: str, found: dict[str, list[dict[str, float]]]) -> Iterator[str]:
    """Lines for a person; aims in brackets."""
    for name, steps in found.items():
        median = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
        peak = max(step["bytes"] for step in steps) / 1e9
        yield f"  {method:<5}{name:<5}{median['cpu']:8.2f} s cpu{median['wall']:8.2f} s wall{peak:8.2f} GB"
    if "peer" not in found:
        return
    ratios = {
        key: statistics.median(a[key] / b[key] for a, b in zip(found["ours"], found["peer"], strict=True))
        for key in ("cpu", "wall")
    }
    peaks = [max(step["bytes"] for step in found[name]) for name in ("ours", "peer")]
    yield (
        f"  {method:<5}ours/peer: cpu {ratios['cpu']:.2f} [<= {AIMS[method]}], wall {ratios['wall']:.2f}, "
        f"memory {peaks[0] / peaks[1]:.2f} [<= {MEMORY_AIM}]"
    )


def main(argv: list[str]) -> int:
    """Run and print."""
    from paddlemix.utils.options import at_least_one
    from paddlemix.utils.paths import new_file
    from tools.bench import SHAPES

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="tiny")
    parser.add_argument("--methods", default="full,lora")
    parser.add_argument("--labelled", type=int, help="places that have a label (default: all text behind the image)")
    parser.add_argument("--repeat", type=at_least_one, default=3)
    parser.add_argument("--peer", help="interpreter with torch, transformers and peft")
    parser.add_argument("--json", type=new_file, help="write all figures there")
    args = parser.parse_args(argv)
    spec: dict[str, Any] = dict(SHAPES[args.shape])
    text = spec["prompt"] - (spec["image"] // spec["patch"]) ** 2 - 1
    spec["labelled"] = text if args.labelled is None else args.labelled
    methods = args.methods.split(",")
    unknown = sorted(set(methods) - set(AIMS))
    if unknown:
        parser.error(f"--methods: {', '.join(unknown)}; there are {', '.join(AIMS)}")
    if not 1 <= spec["labelled"] <= text:
        parser.error(f"--labelled: {spec['labelled']}; 1 to {text} places of this shape are text")
    load = f", load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors" if hasattr(os, "getloadavg") else ""
    print(f"a training step, shape {args.shape}, {spec['labelled']} labels, median of {args.repeat}, one thread{load}")
    everything = {}
    for method in methods:
        everything[method] = measure(method, spec, args.repeat, args.peer)
        for line in report(method, everything[method]):
            print(line, flush=True)
    if args.json:
        args.json.write_text(json.dumps(everything, indent=1), encoding="utf-8")
    return 0
