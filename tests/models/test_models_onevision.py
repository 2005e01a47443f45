# SPDX-License-Identifier: Apache-2.0
"""LLaVAs on SigLIP and Qwen2 (Interleave, OneVision) equal transformers: features, logits, greedy ids, gradients.

``tests/data/onevision`` holds tiny random models in llava-hf's layout and what transformers 5.24 computes
(``tests/peers/onevision.py``).
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import pytest
from safetensors.numpy import save_file

from paddlemix.checkpoint import keymap
from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.convert.vocab import keep_tokenizer, plan_for_hf, plan_without_image_token
from paddlemix.checkpoint.describe import describe
from paddlemix.checkpoint.formats.source import open_folder
from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.imaging.layout import layout_for, layout_of, layout_of_frames, token_count
from paddlemix.splice.plan import PlanRow, build_plan
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX

DATA = Path(__file__).parents[1] / "data" / "onevision"
NUMBERS = np.load(DATA / "expected.npz")
CASES = {"interleave": "interleave", "onevision": "onevision", "several": "onevision"}
SIZES = {"interleave": [(30, 30)] * 2, "onevision": [(50, 80)], "several": [(50, 80), (90, 40)]}
BEFORE = ([3, 4, 5], [6, 7], [8, 9, 10, 11])


def close(ours, theirs):
    worst = np.abs(ours - theirs).max()
    assert worst <= 1e-4 * max(1.0, np.abs(theirs).max()), worst


def row_of(case, config):
    """Ids with places and the layouts of the pictures."""
    ids = []
    for number in range(len(SIZES[case])):
        ids += [*BEFORE[number], IMAGE_TOKEN_INDEX]
    several = len(SIZES[case]) > 1
    layouts = [
        layout_for(size, None, config.image, config.vision) if several else layout_of(size, config.image, config.vision)
        for size in SIZES[case]
    ]
    ids = np.array([*ids, *BEFORE[-1]])
    return PlanRow(ids, layouts, labels=np.where(ids < 0, IGNORE_INDEX, ids))


def run(model, case, **more):
    plan = build_plan([row_of(case, model.config)], tokens_per_tile=model.config.tokens_per_tile)
    given = {name: paddle.to_tensor(getattr(plan, name)) for name in ("token_ids", "source", "positions")}
    if plan.blend_index is not None:
        given |= {name: paddle.to_tensor(getattr(plan, name)) for name in ("blend_index", "blend_weight")}
    return plan, model(**given, pixels=paddle.to_tensor(NUMBERS[f"{case}/pixels"]), **more)


@pytest.mark.parametrize("case", CASES)
def test_features_logits_greedy_ids_and_gradients_are_those_of_transformers(case):
    model = load_model(DATA / CASES[case]).model
    encoder = model.llama.vision_tower.vision_tower
    pixels = paddle.to_tensor(NUMBERS[f"{case}/pixels"])
    with paddle.no_grad():
        for layer, state in enumerate(NUMBERS[f"{case}/states"]):
            close(encoder.hidden_state(pixels, layer).numpy(), state)
        plan, logits = run(model, case)
    row = row_of(case, model.config)
    assert [layout.length for layout in row.layouts] == NUMBERS[f"{case}/counts"].tolist()
    close(logits.numpy()[0], NUMBERS[f"{case}/logits"])
    left = build_plan([row], tokens_per_tile=model.config.tokens_per_tile, padding_side="left")
    decoding = Decoding(max_new_tokens=len(NUMBERS[f"{case}/greedy"]), eos_ids=(-1,))
    drawn = generate_batch(model, left, NUMBERS[f"{case}/pixels"], decoding)[0]
    assert drawn == NUMBERS[f"{case}/greedy"].tolist()
    for parameter in model.parameters():
        parameter.stop_gradient = False
    _, loss = run(model, case, labels=paddle.to_tensor(plan.labels))
    assert float(loss) == pytest.approx(float(NUMBERS[f"{case}/loss"]), rel=1e-4)
    loss.backward()
    watched = [name for name in NUMBERS.files if name.startswith(f"{case}/model.")]
    assert len(watched) == 5 - (case == "interleave")
    for name in watched:
        target = keymap.ours(name.removeprefix(f"{case}/"), "llava_hf_new")
        found = dict(model.named_parameters())[target.name].grad.numpy()
        close(found.T if target.transpose else found, NUMBERS[name])


def test_a_video_is_that_of_transformers():
    model = load_model(DATA / "onevision").model
    pixels = paddle.to_tensor(NUMBERS["video/pixels"])
    layout = layout_of_frames(3, model.config.vision)
    assert (layout.tiles, layout.length) == (3, len(NUMBERS["video/features"]))
    row = PlanRow(np.array([*BEFORE[0], IMAGE_TOKEN_INDEX, *BEFORE[-1]]), [layout])
    plan = build_plan([row], tokens_per_tile=16)
    names = ("token_ids", "source", "positions", "blend_index", "blend_weight")
    given = {name: paddle.to_tensor(getattr(plan, name)) for name in names}
    with paddle.no_grad():
        given_rows = (given["token_ids"], given["source"], model.encode_images(pixels))
        rows = model.embed(*given_rows, (given["blend_index"], given["blend_weight"])).numpy()[0]
        close(rows[3:-4], NUMBERS["video/features"])
        close(model(**given, pixels=pixels).numpy()[0], NUMBERS["video/logits"])
    left = build_plan([row], tokens_per_tile=16, padding_side="left")
    decoding = Decoding(max_new_tokens=len(NUMBERS["video/greedy"]), eos_ids=(-1,))
    assert generate_batch(model, left, NUMBERS["video/pixels"], decoding)[0] == NUMBERS["video/greedy"].tolist()


@pytest.mark.parametrize("kind", ["interleave", "onevision"])
def test_the_layouts_of_both_programs_hold_it_and_come_back(kind, tmp_path):
    own = convert(DATA / kind, tmp_path / "own", "own").folder
    original = convert(own, tmp_path / "original", "original").folder
    back = convert(original, tmp_path / "back", "llava-hf").folder
    for folder in (own, original, back):
        loaded = load_model(folder)
        with paddle.no_grad():
            close(run(loaded.model, kind)[1].numpy()[0], NUMBERS[f"{kind}/logits"])
    data = json.loads((original / "config.json").read_text())
    assert data["architectures"] == ["LlavaQwenForCausalLM"]
    assert data["mm_vision_select_feature"] == "patch"
    assert data["image_aspect_ratio"] == ("anyres_max_1" if kind == "onevision" else "square")
    again = json.loads((back / "config.json").read_text())
    first = json.loads((DATA / kind / "config.json").read_text())
    assert again["vision_config"]["vision_use_head"] is False
    kept = ("model_type", "architectures", "image_grid_pinpoints", "vision_aspect_ratio", "vision_feature_layer")
    for key in (*kept, "video_token_index"):
        assert again.get(key) == first.get(key), key
    assert load_tokenizer(back).token_id("<image>") == first["image_token_index"] == again["image_token_index"]


def test_a_video_gets_a_token_where_the_vocabulary_has_none_and_loses_it_again(tmp_path):
    plain = DATA.parent / "byte_bpe" / "qwen2"
    size = load_tokenizer(plain).vocab_size
    plan = plan_for_hf(plain, size, None, video=True)
    keep_tokenizer(plan, plain, tmp_path, [])
    found = load_tokenizer(tmp_path)
    assert (plan.image_id, plan.pad_id, plan.video_id) == (size, size + 1, size + 2)
    assert [found.token_id(token) for token in ("<image>", "<pad>", "<video>")] == [size, size + 1, size + 2]
    back = plan_without_image_token(tmp_path, plan.rows, None)
    keep_tokenizer(back, tmp_path, tmp_path / "back", [])
    assert (back.rows, load_tokenizer(tmp_path / "back").vocab_size) == (size, size)
    assert plan_for_hf(plain, size, None).video_id is None


def test_a_tower_without_its_last_layers_is_taken_where_the_features_need_no_more(tmp_path):
    """LLaVA-NeXT cuts SigLIP's last layer off, and its config.json names the whole tower."""
    original = convert(DATA / "onevision", tmp_path / "original", "original").folder
    source = open_folder(original)
    whole = json.loads((original / "vision_tower" / "config.json").read_text())
    (original / "vision_tower" / "config.json").write_text(json.dumps(whole | {"num_hidden_layers": 5}))
    data = json.loads((original / "config.json").read_text())
    (original / "config.json").write_text(json.dumps(data | {"mm_vision_select_layer": -3}))
    (original / "vision_tower" / "model.safetensors").unlink()
    assert source.infos()
    loaded = load_model(original)
    assert (loaded.config.vision.num_hidden_layers, loaded.config.vision.select_layer) == (3, -1)
    with paddle.no_grad():
        close(run(loaded.model, "onevision")[1].numpy()[0], NUMBERS["onevision/logits"])


def test_the_doctor_knows_what_it_is():
    facts = describe(DATA / "onevision").facts
    assert facts["family"] == "LLaVA-OneVision type with the tower siglip_vision_model (qwen2, 2 layers of width 32)"
    assert facts["tokenizer"] == "469 tokens, byte_bpe"
    assert facts["images"].startswith("anyres_max_1, spatial_unpad, tiles of 30 pixels")


def test_the_pooling_head_is_left_out(tmp_path):
    folder = shutil.copytree(DATA / "interleave", tmp_path / "model")
    tensors = {name: open_folder(folder).view(name) for name in open_folder(folder).infos()}
    extra = {"vision_tower.head.probe": np.zeros((1, 1, 24), np.float32)}
    extra["vision_tower.head.attention.in_proj_weight"] = np.zeros((72, 24), np.float32)
    save_file({name: np.array(value) for name, value in (tensors | extra).items()}, folder / "model.safetensors")
    with paddle.no_grad():
        close(run(load_model(folder).model, "interleave")[1].numpy()[0], NUMBERS["interleave/logits"])


def test_siglip_stretches_a_picture_and_clip_cuts_it(tmp_path):
    from PIL import Image

    from paddlemix.imaging.processor import ImageProcessor

    config = load_model(DATA / "interleave").config
    assert (config.image.stretch, config.image.mean, config.image.std) == (True, (0.5,) * 3, (0.5,) * 3)
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 70, 3), dtype=np.uint8))
    ours = ImageProcessor(config.image, config.vision)(picture).pixels[0]
    stretched = np.asarray(picture.resize((30, 30), Image.Resampling.BICUBIC), np.float32)
    np.testing.assert_allclose(ours, (stretched / 255 - 0.5).transpose(2, 0, 1) / 0.5, atol=1e-6)
    cut = ImageProcessor(replace(config.image, stretch=False), config.vision)(picture).pixels[0]
    assert np.abs(ours - cut).max() > 0.1
    assert token_count((40, 70), config.image, config.vision) == 16
