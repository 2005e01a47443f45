# SPDX-License-Identifier: Apache-2.0
"""One of several processes that share a model: ``parallel_worker.py FILE DEVICE`` compares it with the whole one.

The first process writes the largest differences of each case to FILE.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.tiny import tiny_config, tiny_intern_config  # noqa: E402 - after the path

WIDTH = 16
"""Of a head."""


def configs(width: int = WIDTH) -> dict[str, Any]:
    """Models whose heads, MLPs and vocabularies two or three devices share unevenly."""
    text = dict(
        vocab_size=449,
        hidden_size=6 * width,
        intermediate_size=99,
        num_attention_heads=6,
        num_key_value_heads=3,
        pad_token_id=0,
    )
    base, intern = tiny_config(), tiny_intern_config()
    vision = dict(hidden_size=3 * width, num_attention_heads=3, intermediate_size=65)
    eva = {"q_bias": True, "k_bias": False, "v_bias": True, "post_layernorm": True}
    tower = replace(base.vision, **vision)
    return {
        "clip": base.with_changes(text=replace(base.text, **text), vision=tower),
        "intern_vit": intern.with_changes(
            text=replace(base.text, **text, attention_bias=True), vision=replace(intern.vision, **vision)
        ),
        "eva_clip": base.with_changes(
            text=replace(base.text, **text, tie_word_embeddings=True),
            vision=replace(tower, model_type="eva_clip_vision_model", extra=eva),
        ),
        "siglip": base.with_changes(
            text=replace(base.text, **text, model_type="qwen2", tie_word_embeddings=True),
            vision=replace(tower, model_type="siglip_vision_model", hidden_act="gelu_pytorch_tanh"),
        ),
    }


METHODS = {
    "clip": {},
    "intern_vit": {"dora": True},
    "eva_clip": {"dora": True, "pissa": True, "rslora": True},
    "siglip": {},
}
"""What the adapters of each model are besides LoRA."""


def batch(config: Any, padding_side: str = "right") -> tuple[Any, np.ndarray]:
    """The plan and the pixels of two rows with an image each, the second padded, and a row of text."""
    from paddlemix.imaging.layout import Layout
    from paddlemix.splice.plan import PlanRow, build_plan
    from paddlemix.utils.constants import IMAGE_TOKEN_INDEX

    rng = np.random.default_rng(3)
    patches, rows = config.vision.tokens_per_tile, []
    for length, pictures in ((9, 1), (7, 1), (8, 0)):
        ids = rng.integers(3, config.text.vocab_size, length)
        if pictures:
            ids[2] = IMAGE_TOKEN_INDEX
        ids[-2] = 0  # the padding token, whose row of the table gets no gradient
        rows.append(
            PlanRow(ids, [Layout(1, np.arange(patches))] * pictures, np.where(np.arange(length) < 4, -100, ids))
        )
    side = config.vision.image_size
    plan = build_plan(rows, tokens_per_tile=patches, padding_side=padding_side)
    return plan, rng.standard_normal((2, 3, side, side)).astype(np.float32)


def arguments(config: Any) -> dict[str, Any]:
    """The arguments of a forward pass with labels."""
    import paddle

    plan, pixels = batch(config)
    arrays = {name: getattr(plan, name) for name in ("token_ids", "source", "positions", "labels")}
    return {name: paddle.to_tensor(value) for name, value in {**arrays, "pixels": pixels}.items()}


def build(config: Any, parallel: Any, lora: dict[str, bool] | None, seed: int = 1) -> Any:
    """A model with weights large enough that an error is seen; ``lora``: adapters of a method, all of them moved."""
    import paddle

    from paddlemix.models.llava import LlavaForCausalLM, init_weights
    from paddlemix.ops.linear import add_lora, lora_layers
    from paddlemix.ops.parallel import cut, whole, whole_shape

    model = LlavaForCausalLM(config, parallel)
    init_weights(model, seed)
    with paddle.no_grad():
        for parameter in model.parameters():
            if len(parameter.shape) > 1:
                parameter.set_value(parameter * 4.0)
    if lora is not None:
        for parameter in model.parameters():
            parameter.stop_gradient = True
        add_lora(model, [".*(_proj|qkv|proj|linear[12]|fc[12]|lm_head)"], r=3, alpha=6, seed=seed, **lora)
        for index, (_, layer) in enumerate(lora_layers(model)):
            columns = layer.columns if isinstance(layer.columns, int) else layer.columns.total
            values = np.random.default_rng(index).standard_normal((3, columns)).astype(np.float32) * 0.1
            if "pissa" in lora:
                begun = np.random.default_rng(-index % 997).standard_normal((whole_shape(layer.lora_A)[0], 3)) * 0.1
                layer.begin_with(begun.astype(np.float32), values[::-1])
            if "dora" in lora:
                # Not from its own start, whose last digits depend on the order of a sum over the devices.
                vector = layer.lora_magnitude_vector
                lengths = np.random.default_rng(index).uniform(0.5, 1.5, columns).astype(np.float32)
                start = whole(vector).numpy()
                vector.set_value(cut(vector, np.round(start, 2) * lengths))
            layer.lora_B.set_value(np.ascontiguousarray(cut(layer.lora_B, values)))
    return model


def step(model: Any, inputs: dict[str, Any], recompute: bool) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and the whole gradient of every parameter."""
    import paddle

    from paddlemix.ops.parallel import part_of, whole

    model.train()
    model.enable_recompute(recompute)
    loss = model(**inputs)
    loss.backward()
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            continue
        # Through the host: what a device has no kernel for is computed and left there.
        gradient = paddle.to_tensor(parameter.grad.numpy())
        if part_of(parameter) is not None:
            gradient.part = part_of(parameter)
            gradient = whole(gradient)
        found[name] = gradient.numpy()
        parameter.clear_gradient()
    with paddle.no_grad():
        return float(loss), found


def generated(model: Any) -> list[list[int]]:
    """Greedy ids after every row."""
    from paddlemix.generation.engine import generate_batch
    from paddlemix.generation.sampling import Decoding

    plan, pixels = batch(model.config, padding_side="left")
    return generate_batch(model.prepare_inference(), plan, pixels, Decoding(max_new_tokens=5))


def relative(value: np.ndarray, want: np.ndarray, largest: float) -> float:
    """Largest difference over the largest value, or over a tenth of the model's ``largest`` gradient.

    A small gradient is what is left of terms that are not small, and rounding goes by those.
    """
    return float(np.abs(value - want).max() / max(float(np.abs(want).max()), 0.1 * largest))


def compare(config: Any, parallel: Any, lora: dict[str, bool] | None, recompute: bool) -> dict[str, Any]:
    """Largest differences between the shared model and the whole one, relative to the largest value of a tensor."""
    import paddle

    from paddlemix.checkpoint.vocab import grow_vocabulary
    from paddlemix.ops.linear import lora_layers
    from paddlemix.ops.parallel import ALONE, whole
    from paddlemix.splice.plan import label_places

    inputs = arguments(config)
    alone, shared = build(config, ALONE, lora), build(config, parallel, lora)
    want_loss, want = step(alone, inputs, recompute)
    loss, found = step(shared, inputs, recompute)
    shared.fuse_head_and_loss(5)
    places = paddle.to_tensor(label_places(inputs["labels"].numpy()))
    by_portions, slopes = step(shared, {**inputs, "label_places": places}, recompute)
    assert slopes.keys() == found.keys()
    with paddle.no_grad():
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        logits = float((alone(**unlabelled) - shared(**unlabelled)).abs().max())
    weights = dict(alone.named_parameters())
    equal = all(bool((whole(value) == weights[name]).all()) for name, value in shared.named_parameters())
    largest = max(float(np.abs(value).max()) for value in want.values())
    gradients = {
        f"{name}, by portions" if each is slopes else name: relative(value, want[name], largest)
        for each in (found, slopes)
        for name, value in each.items()
    }
    for model in (alone, shared):
        grow_vocabulary(model, config.text.vocab_size + 3)
    with paddle.no_grad():
        more = alone(**unlabelled)
        logits = max(logits, float((more - shared(**unlabelled)).abs().max()))
    assert more.shape[-1] == config.text.vocab_size + 3
    ids = generated(alone) == generated(shared)
    if lora is not None:
        for model in (alone, shared):
            for _, layer in lora_layers(model):
                layer.merge()
        with paddle.no_grad():
            logits = max(logits, float((alone(**unlabelled) - shared(**unlabelled)).abs().max()))
    return {
        "loss": max(abs(loss - want_loss), abs(by_portions - want_loss)),
        "logits": logits,
        "gradient": max(gradients.values()),
        "worst": max(gradients, key=gradients.get),
        "gradients": [len(found), len(want)],
        "weights": equal,
        "ids": ids,
    }


def main(target: Path, device: str) -> None:
    """Every case; the first process writes."""
    import paddle

    from paddlemix.ops.parallel import TensorParallel

    paddle.set_device(device)
    paddle.distributed.init_parallel_env()
    parallel = TensorParallel(paddle.distributed.get_rank(), paddle.distributed.get_world_size())
    told = {}
    for name, config in configs().items():
        told[name] = compare(config, parallel, lora=None, recompute=name == "intern_vit")
        told[f"{name}, LoRA"] = compare(config, parallel, lora=METHODS[name], recompute=name != "intern_vit")
    if parallel.rank == 0:
        target.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

    import paddle

    from paddlemix.trainer.ranks import leave_in_order

    leave_in_order(paddle.distributed.get_world_size())  # as a run does at its end
