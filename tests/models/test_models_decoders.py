# SPDX-License-Identifier: Apache-2.0
"""Llama and Qwen2 with every kind of rotary positions equal transformers: logits, greedy ids, gradients of a step.

``tests/data/decoders`` holds tiny random models and what transformers 5.24 computes (``tests/peers/decoders.py``).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.continuous import ContinuousBatch
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.prefix import PrefixCache, Slot
from paddlemix.generation.prefix_store import PrefixStore
from paddlemix.generation.prompt import Prompt
from paddlemix.generation.sampling import Decoding
from paddlemix.ops.attention.contract import Mask
from paddlemix.splice.plan import PlanRow, build_plan

DATA = Path(__file__).parents[1] / "data" / "decoders"
SCALINGS = json.loads((DATA / "scalings.json").read_text())
NUMBERS = np.load(DATA / "expected.npz")
ROW, PROMPT = NUMBERS["row"], int(NUMBERS["prompt"])
CASES = [(kind, scaling) for kind in ("llama", "qwen2") for scaling in SCALINGS]


@pytest.fixture
def model(tmp_path, request):
    """The model of a kind with a scaling, and the prefix of its numbers."""
    kind, scaling = request.param
    folder = shutil.copytree(DATA / kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": SCALINGS[scaling]}))
    return load_model(folder).model, f"{kind}/{scaling}"


def plan_of(ids, **more):
    plan = build_plan([PlanRow(np.array(ids), [], **more)], tokens_per_tile=1)
    return [paddle.to_tensor(array) for array in (plan.token_ids, plan.source, plan.positions)]


def close(ours, theirs):
    worst = np.abs(ours - theirs).max()
    assert worst <= 1e-4 * np.abs(theirs).max(), worst


@pytest.mark.parametrize("model", CASES, indirect=True, ids=map("-".join, CASES))
def test_logits_greedy_ids_and_gradients_are_those_of_transformers(model):
    model, case = model
    with paddle.no_grad():
        close(model(*plan_of(ROW)).numpy()[0], NUMBERS[f"{case}/logits"])
    plan = build_plan([PlanRow(ROW[:PROMPT], [])], tokens_per_tile=1, padding_side="left")
    decoding = Decoding(max_new_tokens=len(NUMBERS[f"{case}/greedy"]), eos_ids=(-1,))
    assert generate_batch(model, plan, None, decoding)[0] == NUMBERS[f"{case}/greedy"].tolist()
    for parameter in model.parameters():
        parameter.stop_gradient = False
    loss = model(*plan_of(ROW), labels=paddle.to_tensor(ROW[None]))
    assert float(loss) == pytest.approx(float(NUMBERS[f"{case}/loss"]), rel=1e-5)
    loss.backward()
    watched = [name for name in NUMBERS.files if name.startswith(f"{case}/model.")]
    assert len(watched) == 4 + case.startswith("qwen2")
    for name in watched:
        own = name.removeprefix(f"{case}/model.")
        found = dict(model.llama.named_parameters())[own].grad.numpy()
        close(found.T if "proj.weight" in own else found, NUMBERS[name])


@pytest.mark.parametrize("model", [("llama", "dynamic"), ("qwen2", "yarn")], indirect=True)
def test_a_cache_of_fixed_size_draws_the_same_ids(model):
    model, case = model
    cache = model.new_static_cache(40)
    ids, found = ROW[:PROMPT].tolist(), []
    fed, position = ids, 0
    with paddle.no_grad():
        for _ in NUMBERS[f"{case}/greedy"]:
            tokens = paddle.to_tensor([fed])
            positions = paddle.arange(position, position + len(fed)).unsqueeze(0)
            mask = Mask(causal=True, offset=cache.offset)
            hidden = model.decode(model.llama.embed(tokens), positions, mask, cache)
            position += len(fed)
            found.append(int(model.logits(hidden[:, -1]).argmax()))
            fed = found[-1:]
    assert found == NUMBERS[f"{case}/greedy"].tolist()


@pytest.mark.parametrize("model", [("llama", "dynamic"), ("llama", "yarn")], indirect=True)
def test_each_row_of_a_batch_and_each_part_of_a_packed_row_is_as_alone(model):
    model, _ = model
    rows = [PlanRow(ROW[:20], []), PlanRow(ROW[3:9], [])]
    plan = build_plan(rows, tokens_per_tile=1)
    with paddle.no_grad():
        inputs = [paddle.to_tensor(array) for array in (plan.token_ids, plan.source, plan.positions)]
        together = model(*inputs).numpy()
        for number, row in enumerate(rows):
            alone = model(*plan_of(row.ids)).numpy()[0]
            close(together[number, : len(row.ids)], alone)


@pytest.mark.parametrize(("scaling", "kept"), [("dynamic", 0), ("yarn", 18)])
def test_keys_of_a_text_beyond_the_window_are_computed_anew_where_the_base_grows(scaling, kept, tmp_path):
    folder = shutil.copytree(DATA / "llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": SCALINGS[scaling]}))
    model = load_model(folder).model
    cache = PrefixCache()
    slots = [Slot(int(number)) for number in ROW]
    for count, shared in ((10, 0), (14, 10), (18, kept and 14), (20, kept)):
        assert cache.keep(model, slots[:count]) == shared
        with paddle.no_grad():
            tokens, _, positions = plan_of(ROW[:count])
            keys = cache.keys_values
            mask = Mask(causal=True, offset=keys.length)
            model.decode(model.llama.embed(tokens[:, shared:]), positions[:, shared:], mask, keys)
        cache.note(slots[:count], [])


@pytest.mark.parametrize("model", [("llama", "dynamic"), ("qwen2", "yarn")], indirect=True)
def test_rows_that_share_steps_and_beginnings_are_as_alone(model):
    model, _ = model
    decoding = Decoding(max_new_tokens=6, eos_ids=(-1,))
    prompts = [Prompt(tuple(map(int, ROW[:count])), "", ()) for count in (24, 12, 20, 18)]
    alone = []
    for prompt in prompts:
        plan = build_plan([PlanRow(np.array(prompt.ids), [])], tokens_per_tile=1, padding_side="left")
        alone.append(generate_batch(model, plan, None, decoding)[0])
    batch = ContinuousBatch(model, 2, piece=7, prefixes=PrefixStore(), keep_answers=True)
    rows = [batch.submit(prompt, decoding) for prompt in prompts]
    while batch.busy:
        batch.step()
    assert [row.ids for row in rows] == alone


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_language_model_goes_to_our_layout_and_back(kind, tmp_path):
    own = convert(DATA / kind, tmp_path / "own", "own").folder
    back = convert(own, tmp_path / "back", "original").folder
    for folder in (own, back):
        model = load_model(folder).model
        with paddle.no_grad():
            close(model(*plan_of(ROW)).numpy()[0], NUMBERS[f"{kind}/default/logits"])
