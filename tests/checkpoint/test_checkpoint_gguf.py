# SPDX-License-Identifier: Apache-2.0
"""GGUF files of a model folder: names, shapes, values, vocabulary, and what is refused. The way back for Llama."""

import sys
import weakref
from dataclasses import replace

import numpy as np
import pytest

from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.gguf import names, rope, vocabulary
from paddlemix.checkpoint.gguf.package import Item, write_file
from paddlemix.checkpoint.gguf.read import folder_of_gguf
from paddlemix.checkpoint.gguf.write import convert_to_gguf
from paddlemix.checkpoint.load import load_model
from paddlemix.settings.model import ImageConfig
from paddlemix.text import spm
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.tools import convert_weights
from paddlemix.utils.errors import CheckpointError
from tests.checkpoint.gguf_kit import KINDS, MISSING, fields_in, folder_of, made, tensors_in
from tests.text.text_tools import folder as llama_folder
from tests.text.text_tools import model_bytes
from tests.tiny import tiny_config, tiny_tokenizer_folder

pytestmark = pytest.mark.skipif(MISSING, reason="the package gguf is not installed")
GRID = ((28, 56), (56, 28), (56, 56))
ANYRES = ImageConfig(crop_size=28, resize_size=28, aspect="anyres", merge="spatial_unpad", grid_pinpoints=GRID)

# What llama.cpp's convert_image_encoder_to_gguf.py writes for LLaVA's CLIP tower (width 32, 64 in between, tiles of 28
# pixels, patches of 14), the features of which come from layer 1 of 2. Its ffn_down is fc1, its ffn_up fc2.
TOWER_TENSORS = {
    "v.class_embd": (32,),
    "v.patch_embd.weight": (32, 3, 14, 14),
    "v.position_embd.weight": (5, 32),
    "v.pre_ln.weight": (32,), "v.pre_ln.bias": (32,),
    "v.blk.0.ln1.weight": (32,), "v.blk.0.ln1.bias": (32,),
    "v.blk.0.ln2.weight": (32,), "v.blk.0.ln2.bias": (32,),
    "v.blk.0.attn_q.weight": (32, 32), "v.blk.0.attn_q.bias": (32,),
    "v.blk.0.attn_k.weight": (32, 32), "v.blk.0.attn_k.bias": (32,),
    "v.blk.0.attn_v.weight": (32, 32), "v.blk.0.attn_v.bias": (32,),
    "v.blk.0.attn_out.weight": (32, 32), "v.blk.0.attn_out.bias": (32,),
    "v.blk.0.ffn_down.weight": (64, 32), "v.blk.0.ffn_down.bias": (64,),
    "v.blk.0.ffn_up.weight": (32, 64), "v.blk.0.ffn_up.bias": (32,),
    "mm.0.weight": (32, 32), "mm.0.bias": (32,),
    "mm.2.weight": (32, 32), "mm.2.bias": (32,),
}  # fmt: skip
TOWER_FIELDS = {
    "general.architecture": "clip",
    "general.file_type": 1,
    "clip.has_text_encoder": False,
    "clip.has_vision_encoder": True,
    "clip.has_llava_projector": True,
    "clip.projector_type": "mlp",
    "clip.vision.image_size": 28,
    "clip.vision.patch_size": 14,
    "clip.vision.embedding_length": 32,
    "clip.vision.feed_forward_length": 64,
    "clip.vision.projection_dim": 768,
    "clip.vision.attention.head_count": 4,
    "clip.vision.attention.layer_norm_epsilon": pytest.approx(1e-5),
    "clip.vision.block_count": 1,
    "clip.vision.feature_layer": [1],
    "clip.vision.image_mean": pytest.approx([0.48145466, 0.4578275, 0.40821073]),
    "clip.vision.image_std": pytest.approx([0.26862954, 0.26130258, 0.27577711]),
    "clip.vision.mm_projector_type": "mlp2x_gelu",
    "clip.use_gelu": False,
}
NEXT_FIELDS = {
    "clip.vision.image_grid_pinpoints": [28, 56, 56, 28, 56, 56],
    "clip.vision.image_aspect_ratio": "anyres",
    "clip.vision.image_crop_resolution": 28,
    "clip.vision.mm_patch_merge_type": "spatial_unpad",
}


def weights(folder):
    return {name: value.numpy() for name, value in load_model(folder).model.state_dict().items()}


@pytest.mark.parametrize("generation", ["1.5", "1.6"])
def test_the_tower_has_the_names_shapes_and_fields_of_llama_cpps_script(generation, tmp_path):
    changes = {"image": ANYRES, "has_image_newline": True}
    folder = made("llama") if generation == "1.5" else folder_of(tmp_path / "model", "llama", **changes)
    told = " ".join(convert_to_gguf(folder, tmp_path / "gguf").notes)
    assert "its issue 25814" in told
    assert ("tiles of LLaVA-1.6 before the whole image" in told) == (generation == "1.6")
    path = tmp_path / "gguf" / "mmproj-model-f16.gguf"
    more = {"model.image_newline": (32,)} if generation == "1.6" else {}
    found = tensors_in(path)
    assert {name: values.shape for name, (_, values) in found.items()} == TOWER_TENSORS | more
    assert {name: form for name, (form, _) in found.items()} == {
        name: "f32" if values.ndim == 1 else "f16" for name, (_, values) in found.items()
    }
    fields = fields_in(path)
    told = {key: value for key, value in fields.items() if key.startswith("clip.")}
    wanted = TOWER_FIELDS | (NEXT_FIELDS if generation == "1.6" else {})
    assert set(told) == {key for key in wanted if key.startswith("clip.")}
    assert {key: fields[key] for key in wanted} == wanted
    ours = weights(folder)
    layer = "llama.vision_tower.vision_tower.vision_model.transformer.layers.0."
    np.testing.assert_allclose(found["v.blk.0.ffn_down.weight"][1], ours[layer + "linear1.weight"].T, rtol=1e-3)
    np.testing.assert_array_equal(found["v.blk.0.ln2.bias"][1], ours[layer + "norm2.bias"])
    np.testing.assert_allclose(found["mm.2.weight"][1], ours["llama.mm_projector.2.weight"].T, rtol=1e-3)


def test_a_rotation_of_neighbours_gives_the_scores_of_a_rotation_of_halves():
    heads, width, rows = 3, 8, np.random.default_rng(0)
    matrix, hidden = rows.normal(size=(heads * width, 16)), rows.normal(size=(2, 16))
    angles = 5.0 * 10000.0 ** -(np.arange(0, width, 2) / width)

    def score(values, first, second):
        q, k = ((values @ row).reshape(heads, width) for row in hidden)
        turned = q.copy()
        turned[:, first] = q[:, first] * np.cos(angles) - q[:, second] * np.sin(angles)
        turned[:, second] = q[:, second] * np.cos(angles) + q[:, first] * np.sin(angles)
        return (turned * k).sum(axis=1)

    low, even = np.arange(width // 2), np.arange(0, width, 2)
    turned = names.pairs_together(matrix, heads)
    np.testing.assert_allclose(score(turned, even, even + 1), score(matrix, low, low + width // 2))
    np.testing.assert_array_equal(names.halves_apart(turned, heads), matrix)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "linear"])
def test_every_text_tensor_is_written_and_has_its_values(kind, tmp_path):
    folder = made(kind)
    convert_to_gguf(folder, tmp_path / "gguf", 32)
    found = tensors_in(tmp_path / "gguf" / "model-f32.gguf")
    ours = {name: value for name, value in weights(folder).items() if "vision" not in name and "mm_" not in name}
    extra = {"rope_freqs.weight"} if kind == "llama3" else set()
    assert len(found) == len(ours) + len(extra)
    assert ("output.weight" in found) == (kind != "tied")
    np.testing.assert_array_equal(found["blk.1.ffn_down.weight"][1], ours["llama.layers.1.mlp.down_proj.weight"].T)
    query = ours["llama.layers.0.self_attn.q_proj.weight"].T
    turned = query if kind == "qwen2" else names.pairs_together(query, 4)
    np.testing.assert_array_equal(found["blk.0.attn_q.weight"][1], turned)
    fields = fields_in(tmp_path / "gguf" / "model-f32.gguf")
    arch = "qwen2" if kind == "qwen2" else "llama"
    assert fields["general.architecture"] == arch
    assert fields[f"{arch}.attention.head_count_kv"] == 2
    assert fields["tokenizer.chat_template"].startswith("{%- macro")


def test_llama_3_stretches_long_waves_only():
    text = replace(tiny_config().text, head_dim=16, rope_theta=10000.0)
    assert rope.frequency_factors(text) is None
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    text = replace(text, rope_scaling={**scaling, "original_max_position_embeddings": 256})
    found = rope.frequency_factors(text)
    assert found.shape == (8,)
    assert found[0] == 1.0  # 6.3 positions
    assert found[-1] == 8.0  # 20,000 positions
    assert np.all(np.diff(found) >= 0)


def test_a_sentencepiece_vocabulary_keeps_pieces_scores_and_kinds(tmp_path):
    folder = made("llama")
    convert_to_gguf(folder, tmp_path / "gguf")
    fields = fields_in(tmp_path / "gguf" / "model-f16.gguf")
    tokenizer = load_tokenizer(folder)
    pieces = spm.read_model(load_tokenizer(folder).files.model)
    prefix, size = "tokenizer.ggml.", len(pieces)
    assert fields[prefix + "model"] == "llama"
    assert fields[prefix + "tokens"][:size] == [piece.text for piece in pieces]
    assert fields[prefix + "scores"][:size] == pytest.approx([piece.score for piece in pieces])
    assert fields[prefix + "token_type"][:4] == [2, 3, 3, 6]
    assert fields[prefix + "tokens"][tokenizer.vocab_size :][0] == f"[PAD{tokenizer.vocab_size - size + 1}]"
    assert {len(fields[prefix + key]) for key in ("tokens", "scores", "token_type")} == {448}
    assert fields[prefix + "token_type"][-1] == 5
    assert (fields[prefix + "bos_token_id"], fields[prefix + "eos_token_id"]) == (1, 2)
    assert fields[prefix + "add_bos_token"] is True


def test_pieces_that_are_never_split_have_spaces_as_a_text_has_them_and_are_told():
    tokenizer, notes = load_tokenizer(llama_folder(model_bytes(symbols=("\u2581red\u2581mat", "?")))), []
    fields = vocabulary.tokenizer_fields(tokenizer, 512, notes)
    number = tokenizer.token_id("\u2581red\u2581mat")
    assert fields["tokenizer.ggml.tokens"][number] == " red mat"
    assert fields["tokenizer.ggml.token_type"][number] == 4
    assert "\u2581the" in fields["tokenizer.ggml.tokens"]
    assert "sets a space behind the 2 pieces that are never split" in notes[0]
    vocabulary.tokenizer_fields(load_tokenizer(llama_folder(model_bytes())), 512, rest := [])
    assert not rest


@pytest.mark.parametrize("family", ["qwen2", "llama3"])
def test_a_byte_level_vocabulary_comes_back(family, tmp_path):
    folder = made("qwen2" if family == "qwen2" else "llama3")
    convert_to_gguf(folder, tmp_path / "gguf", 32)
    fields = fields_in(tmp_path / "gguf" / "model-f32.gguf")
    assert fields["tokenizer.ggml.pre"] == {"qwen2": "qwen2", "llama3": "llama-bpe"}[family]
    end = {"qwen2": "<|im_end|>", "llama3": "<|eot_id|>"}[family]
    tokenizer = load_tokenizer(folder)
    number = tokenizer.token_id(end)
    assert fields["tokenizer.ggml.token_type"][number] == 3
    assert number in (fields["tokenizer.ggml.eos_token_id"], fields.get("tokenizer.ggml.eot_token_id"))
    if family == "llama3":
        with pytest.raises(CheckpointError, match="positions are scaled"):
            folder_of_gguf(tmp_path / "gguf" / "model-f32.gguf", tmp_path / "back")
        return
    folder_of_gguf(tmp_path / "gguf" / "model-f32.gguf", tmp_path / "back")
    again = load_tokenizer(tmp_path / "back")
    for text in ("What's  it? 1234\n\n", f"naïve 中文 {end} x", "\U0001f468\u200d"):
        assert again.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize(("kind", "family"), [("qwen2", "qwen2"), ("llama", "llama3")])
def test_the_way_back_gives_every_weight_and_the_tokenizer(kind, family, tmp_path):
    folder = made(kind, family)
    convert_to_gguf(folder, tmp_path / "gguf", 32)
    config = folder_of_gguf(tmp_path / "gguf" / "model-f32.gguf", tmp_path / "back")
    assert config["rope_theta"] == 10000.0
    assert config["rms_norm_eps"] == 1e-5
    first, again = load_tokenizer(folder), load_tokenizer(tmp_path / "back")
    for text in ("What's  it? 1234\n\n", "naïve 中文 <|eot_id|> x", "\U0001f468\u200d"):
        assert again.encode(text) == first.encode(text)
    model, back = (tokenizer.files.pipeline["model"] for tokenizer in (first, again))
    assert back["ignore_merges"] == model["ignore_merges"]
    ours, back = weights(folder), weights(tmp_path / "back")
    assert back.keys() == {name for name in ours if "vision" not in name and "mm_" not in name}
    for name, value in back.items():
        np.testing.assert_array_equal(value, ours[name], err_msg=name)


def test_eight_bits_round_matrices_and_nothing_else(tmp_path):
    folder = made("llama")
    convert_to_gguf(folder, tmp_path / "32", 32)
    convert_to_gguf(folder, tmp_path / "8", 8)
    exact, rounded = tensors_in(tmp_path / "32" / "model-f32.gguf"), tensors_in(tmp_path / "8" / "model-q8_0.gguf")
    assert {form for form, _ in exact.values()} == {"f32"}
    for name, (form, values) in rounded.items():
        assert form == ("f32" if values.ndim == 1 else "q8_0")
        # A block of 32 values has one scale: its largest value is 127 steps.
        blocks = exact[name][1].reshape(-1, 32)
        step = np.abs(blocks).max(axis=1, keepdims=True) / 127
        allowed = np.where(values.ndim == 1, 0.0, step * 0.51 + np.abs(blocks) * 1e-3)
        assert np.all(np.abs(values.reshape(-1, 32) - blocks) <= allowed)
    assert (tmp_path / "8" / "mmproj-model-f16.gguf").is_file()
    assert fields_in(tmp_path / "8" / "model-q8_0.gguf")["general.file_type"] == 7


def test_one_tensor_is_in_memory_at_a_time(tmp_path):
    alive, most = weakref.WeakSet(), 0

    class Counted(np.ndarray):
        __hash__ = object.__hash__

    def values(form):
        def made():
            nonlocal most
            found = np.ones((64, 64), np.float16 if form == "f16" else np.float32).view(Counted)
            alive.add(found)
            most = max(most, len(alive))
            return found

        return made

    items = [Item(f"t{i}", form, (64, 64), values(form)) for i, form in enumerate(["f32", "f16", "q8_0"] * 4)]
    write_file(tmp_path / "x.gguf", "llama", {"a": True, "b": 3, "c": 0.5, "d": ["x"]}, items)
    assert most <= 2  # the one before is let go when the next one is there
    assert (tmp_path / "x.gguf").stat().st_size > sum(item.nbytes for item in items)
    assert fields_in(tmp_path / "x.gguf") == {"general.architecture": "llama", "a": True, "b": 3, "c": 0.5, "d": ["x"]}


# ---- what is refused -----------------------------------------------------------------------------------------------


def refused(capsys, *argv):
    assert convert_weights.main([str(word) for word in argv]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_without_the_package_one_line_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    folder = made("llama")
    monkeypatch.setitem(sys.modules, "gguf", None)
    told = refused(capsys, "--src", folder, "--dst", tmp_path / "new", "--to", "gguf")
    assert "needs the package gguf" in told
    assert "[gguf]" in told
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--to", "original", "--bits", "8"], "--bits 8: belongs to --to own and --to gguf"),
        (["--to", "gguf", "--dtype", "float16"], "--to gguf takes --bits 32, 16 or 8"),
        (["--to", "gguf", "--delta-base", "x"], "write the sum with --to own first"),
    ],
)
def test_flags_that_do_not_belong_together_are_refused(flags, said, tmp_path, capsys):
    assert said in refused(capsys, "--src", tmp_path, "--dst", tmp_path / "new", *flags)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"projector_type": "linear"}, 'no form for the projector "linear"'),
        ({"vision": replace(tiny_config().vision, select_feature="cls_patch")}, 'mm_vision_select_feature "cls_patch"'),
        ({"vision": replace(tiny_config().vision, intermediate_size=32)}, "whose layers do not widen"),
        ({"image": replace(ANYRES, max_tiles=9), "has_image_newline": True}, "as LLaVA-OneVision does"),
    ],
)
def test_what_the_reader_cannot_run_is_refused(changes, said, tmp_path, capsys):
    folder = folder_of(tmp_path / "model", "llama", **changes)
    assert said in refused(capsys, "--src", folder, "--dst", tmp_path / "new", "--to", "gguf")
    assert not (tmp_path / "new").exists()


def test_values_beyond_float16_are_refused(tmp_path, capsys):
    import paddle

    from paddlemix.checkpoint.save import save_model
    from tests.tiny import tiny_model

    model = tiny_model()
    with paddle.no_grad():
        model.state_dict()["llama.layers.0.mlp.up_proj.weight"][3, 4] = 1e6
    folder = save_model(tmp_path / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    told = refused(capsys, "--src", folder, "--dst", tmp_path / "new", "--to", "gguf", "--bits", "16")
    assert '"blk.0.ffn_up.weight" holds values that float16 cannot' in told
    assert (
        convert_weights.main(["--src", str(folder), "--dst", str(tmp_path / "n"), "--to", "gguf", "--bits", "32"]) == 0
    )


def test_a_broken_file_is_one_line(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\xff" * 64)
    with pytest.raises(CheckpointError, match="no GGUF file that can be read"):
        folder_of_gguf(tmp_path / "x.gguf", tmp_path / "back")
    convert(made("llama"), tmp_path / "own", "own")
    convert_to_gguf(tmp_path / "own", tmp_path / "gguf", 32)
    with pytest.raises(CheckpointError, match='its tokenizer is "llama"'):
        folder_of_gguf(tmp_path / "gguf" / "model-f32.gguf", tmp_path / "back")
