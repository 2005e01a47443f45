# SPDX-License-Identifier: Apache-2.0
"""Conversion: every layout to every layout and back with the same bytes, and nothing half-made."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.convert import tensors as module
from paddlemix.checkpoint.convert.layouts import CONVERSION, convert
from paddlemix.checkpoint.convert.vocab import with_rows
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.formats.source import open_file, open_folder
from paddlemix.checkpoint.formats.torch_write import write_torch
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.adapter import save_adapter
from paddlemix.checkpoint.lora.read import read_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.ops.linear import add_lora
from paddlemix.settings.model import ImageConfig
from paddlemix.settings.published.config import load_config
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.tools import convert_weights
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.files import verify_folder
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_model, tiny_tokenizer_folder

ROOT = Path(__file__).resolve().parents[2]


def tensors(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Name -> dtype and bytes of every tensor that is loaded."""
    source = open_folder(folder)
    return {name: (info.dtype, source.read(name).tobytes()) for name, info in source.infos().items()}


def values(folder: Path) -> dict[str, np.ndarray]:
    return {name: parameter.numpy() for name, parameter in load_model(folder).model.named_parameters()}


def equal(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("by_way_of", ["own", "llava-hf", "paddlemix", "original"])
def test_there_and_back_gives_the_same_bytes_and_the_same_config(by_way_of, dtype, tmp_path):
    source = kit.hub(tmp_path, tiny_model(2), dtype=dtype)["llava"]
    there = convert(source, tmp_path / "x" / "there", by_way_of).folder
    back = convert(there, tmp_path / "x" / "back", "original").folder
    assert tensors(back) == tensors(source)
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())
    assert verify_folder(back) == []
    assert load_tokenizer(back).vocab_size == load_tokenizer(source).vocab_size


@pytest.mark.parametrize("to", ["own", "llava-hf", "paddlemix", "original"])
def test_every_layout_holds_the_same_model(to, tmp_path):
    model = tiny_model(2)
    source = kit.hub(tmp_path, model)["llava"]
    made = values(convert(source, tmp_path / "x" / "made", to).folder)
    rows = model.config.text.vocab_size
    for name, parameter in model.named_parameters():
        found = made[name]
        if name == "llama.embed_tokens.weight":
            found = found[:rows]
        if name == "lm_head.weight":
            found = found[:, :rows]
        np.testing.assert_array_equal(found, parameter.numpy(), err_msg=name)


def test_a_trained_model_of_ours_leaves_for_every_layout(tmp_path):
    model = tiny_model(4)
    tokenizer = load_tokenizer(tiny_tokenizer_folder(tmp_path / "t"))
    save_model(tmp_path / "own", model, model.config, tokenizer)
    expected = values(tmp_path / "own")
    for to in ("original", "paddlemix", "llava-hf"):
        made = convert(tmp_path / "own", tmp_path / to, to).folder
        back = convert(made, tmp_path / f"{to}-back", "original" if to == "llava-hf" else "own").folder
        found = values(back)
        for name in ("llama.embed_tokens.weight", "lm_head.weight"):
            cut = tuple(slice(size) for size in found[name].shape)
            np.testing.assert_array_equal(found[name], expected[name][cut])
        equal({n: v for n, v in expected.items() if "embed" not in n and "lm_head" not in n},
              {n: v for n, v in found.items() if "embed" not in n and "lm_head" not in n})  # fmt: skip


def anyres_model(**changes):
    pairs = ((56, 28), (28, 56), (56, 56))
    image = ImageConfig(28, 28, "anyres", changes.pop("merge", "spatial_unpad"), pairs)
    return tiny_model(5, image=image, has_image_newline=True, **changes)


def test_anyres_models_keep_grid_newline_and_tower(tmp_path):
    model = anyres_model()
    save_model(tmp_path / "own", model, model.config, load_tokenizer(tiny_tokenizer_folder(tmp_path / "t")))
    for to in ("original", "llava-hf", "paddlemix"):
        made = convert(tmp_path / "own", tmp_path / to, to).folder
        config = load_config(made, tower_folder=None if to == "llava-hf" else made / "vision_tower")
        assert config.image == model.config.image
        newline = {name: array for name, array in values(made).items() if "newline" in name or "tower" in name}
        for name, array in newline.items():
            np.testing.assert_array_equal(array, dict(model.named_parameters())[name].numpy(), err_msg=name)
    raw = json.loads((tmp_path / "llava-hf" / "config.json").read_text())
    assert raw["image_grid_pinpoints"] == [[28, 56], [56, 28], [56, 56]]  # (height, width) in transformers
    assert json.loads((tmp_path / "original" / "config.json").read_text())["unfreeze_mm_vision_tower"] is True


@pytest.mark.parametrize("changes", [{"merge": "spatial"}, {"merge": "flat"}, {"projector_type": "linear"}])
def test_what_llava_hf_cannot_hold_is_an_error(changes, tmp_path):
    model = anyres_model(**changes)
    save_model(tmp_path / "own", model, model.config, load_tokenizer(tiny_tokenizer_folder(tmp_path / "t")))
    with pytest.raises(CheckpointError, match="llava-hf has no form"):
        convert(tmp_path / "own", tmp_path / "hf", "llava-hf")
    assert not (tmp_path / "hf").exists()


def test_new_rows_of_llava_hf_are_the_mean_and_its_tokens_are_known(tmp_path):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    made = convert(source, tmp_path / "hf", "llava-hf").folder
    tokenizer, rows = load_tokenizer(made), open_folder(made)
    raw = json.loads((made / "config.json").read_text())
    assert tokenizer.token_id("<image>") == raw["image_token_index"] == load_tokenizer(source).vocab_size
    assert tokenizer.token_id("<pad>") == raw["pad_token_id"] == tokenizer.pad_id
    vision = raw["vision_config"]
    assert raw["image_seq_length"] == (vision["image_size"] // vision["patch_size"]) ** 2
    table = rows.read("language_model.model.embed_tokens.weight")
    assert table.shape[0] % 64 == 0
    before = open_folder(source).read("model.embed_tokens.weight")
    np.testing.assert_array_equal(table[: len(before)], before)
    np.testing.assert_allclose(table[len(before) :], np.tile(before.mean(0), (len(table) - len(before), 1)), atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_cut_and_filled_along_either_axis(axis):
    table = np.random.default_rng(0).normal(size=(5000, 3)).astype(np.float32)
    values = table if axis == 0 else table.T
    more, less = with_rows(values, "float32", axis, 5003), with_rows(values, "float32", axis, 4)
    more, less = (more, less) if axis == 0 else (more.T, less.T)
    np.testing.assert_array_equal(more[:5000], table)
    np.testing.assert_allclose(more[5000:], np.tile(table.mean(0), (3, 1)), atol=1e-6)
    np.testing.assert_array_equal(less, table[:4])


def test_dtype_casts_every_weight_and_says_so_in_the_config(tmp_path):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    made = convert(source, tmp_path / "x", "original", dtype="bfloat16").folder
    assert {dtype for dtype, _ in tensors(made).values()} == {"bfloat16"}
    assert load_config(made, tower_folder=tmp_path / "openai" / "tiny-clip").dtype == "bfloat16"


def test_shard_size_cuts_the_weights_into_files(tmp_path):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    made = convert(source, tmp_path / "x", "original", max_shard_bytes=40_000).folder
    assert len(list(made.glob("*.safetensors"))) > 3
    assert tensors(made) == tensors(source)


def delta_hub(tmp_path: Path, extra: int = 0) -> tuple[Path, dict[str, np.ndarray]]:
    """A delta folder (with ``extra`` more tokens than its base) and the weights it stands for."""
    model = tiny_model(2)
    hub = kit.hub(tmp_path, model)
    base = {name: array for name, (_, array) in kit.weights_in("llava", model).items()}
    rng = np.random.default_rng(1)
    whole, delta = {}, {}
    for name, array in base.items():
        if "vision_tower" in name:
            continue
        whole[name] = rng.normal(size=array.shape).astype(np.float16).astype(np.float32)
        known = "mm_projector" not in name
        delta[name] = ("float32", whole[name] - array if known else whole[name])
    folder = kit.write_config(tmp_path / "liuhaotian" / "delta", kit.llava_config(model, "openai/tiny-clip"))
    kit.write_weights(folder, "safetensors", delta)
    tiny_tokenizer_folder(folder)
    assert hub["vicuna"].is_dir()
    return folder, whole


def test_delta_weights_are_added_to_their_base(tmp_path):
    folder, whole = delta_hub(tmp_path)
    made = open_folder(convert(folder, tmp_path / "x", "original", delta_base=tmp_path / "lmsys" / "tiny").folder)
    for name, array in whole.items():
        np.testing.assert_allclose(made.read(name), array, atol=2e-6, err_msg=name)


def test_a_delta_of_another_base_is_an_error(tmp_path):
    folder, _ = delta_hub(tmp_path)
    other = tiny_model(1)
    base = kit.write_config(tmp_path / "other", {"model_type": "llama", **kit.llama_config(other)})
    weights = {
        n: (d, np.concatenate([a, a])) for n, (d, a) in kit.weights_in("llava", other).items() if "tower" not in n
    }
    kit.write_weights(base, "safetensors", weights)
    with pytest.raises(CheckpointError, match="belong to another base"):
        convert(folder, tmp_path / "x", "original", delta_base=base)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("by_way_of", ["own", "paddlemix"])
def test_adapters_come_back_with_the_same_bytes(by_way_of, tmp_path):
    model = tiny_model(2)
    kit.hub(tmp_path, model)
    source = kit.peft_adapter(tmp_path / "liuhaotian" / "lora", model, "lmsys/tiny")
    there = convert(source, tmp_path / "liuhaotian" / "there", by_way_of).folder
    back = convert(there, tmp_path / "liuhaotian" / "back", "original").folder
    ours, theirs = read_adapter(source), read_adapter(back)
    for name in ours.source.infos():
        assert theirs.source.read(name).tobytes() == ours.source.read(name).tobytes(), name
    assert theirs.source.infos().keys() == ours.source.infos().keys()
    first, second = open_file(source / "non_lora_trainables.bin"), open_file(back / "non_lora_trainables.bin")
    assert {n: first.read(n).tobytes() for n in first.infos()} == {n: second.read(n).tobytes() for n in second.infos()}
    equal(values(source), values(there))
    config = json.loads((back / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8)
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]


def test_an_adapter_for_llava_hf_has_its_names_and_comes_back(tmp_path):
    model = tiny_model(2)
    llava = kit.hub(tmp_path, model)["llava"]
    source = kit.peft_adapter(tmp_path / "liuhaotian" / "lora", model, "liuhaotian/tiny")
    base = convert(llava, tmp_path / "hf" / "tiny", "llava-hf").folder
    there = convert(source, tmp_path / "hf" / "lora", "llava-hf", base=base).folder
    config = json.loads((there / "adapter_config.json").read_text())
    assert config["modules_to_save"] == ["multi_modal_projector"]
    assert config["base_model_name_or_path"] == str(base)
    assert "model.language_model.layers.1.self_attn.q_proj" in config["target_modules"]
    back = convert(there, tmp_path / "liuhaotian" / "back", "original", base=llava).folder
    ours, theirs = read_adapter(source), read_adapter(back)
    assert theirs.source.infos().keys() == ours.source.infos().keys()
    for name in ours.source.infos():
        assert theirs.source.read(name).tobytes() == ours.source.read(name).tobytes(), name
    rows = model.config.text.vocab_size
    theirs = values(there)
    for name, array in values(source).items():
        found = theirs[name]
        found = found[:rows] if name == "llama.embed_tokens.weight" else found[..., : array.shape[-1]]
        np.testing.assert_array_equal(found, array, err_msg=name)


def test_what_peft_has_no_place_for_in_llava_hf_is_an_error(tmp_path):
    image = ImageConfig(28, 28, "anyres", "spatial_unpad", ((56, 28), (28, 56), (56, 56)))
    model = tiny_model(2, image=image, has_image_newline=True)
    base = save_model(tmp_path / "base", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    add_lora(model, ["llama.layers.*q_proj"], 2, 4)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = ".lora_" not in name
    source = save_adapter(tmp_path / "lora", model, model.config, load_tokenizer(base), base=base)
    with pytest.raises(CheckpointError, match="image_newline.*Merge the adapter first"):
        convert(source, tmp_path / "x", "llava-hf")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("form", ["original", "paddlemix"])
def test_an_adapter_whose_base_names_no_tower_says_how_it_is_opened(tmp_path, form):
    model = tiny_model(2)
    base = save_model(tmp_path / "base", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    hf = convert(base, tmp_path / "hf", "llava-hf").folder
    add_lora(model, ["llama.layers.*q_proj"], 2, 4)
    source = save_adapter(tmp_path / "lora", model, model.config, load_tokenizer(base), base=hf)
    done = convert(source, tmp_path / "out", form, base=hf)
    assert any("chat --model-path ADAPTER --vision-tower OPENED/vision_tower" in note for note in done.notes)
    convert(hf, tmp_path / "opened", "original")
    tower = tmp_path / "opened" / "vision_tower"
    assert load_model(done.folder, base=hf, vision_tower=tower).config.vision is not None


@pytest.mark.parametrize("kind", ["original", "own", "llava-hf", "peft"])
def test_the_projector_of_any_folder_becomes_a_file(kind, tmp_path):
    model = tiny_model(2)
    source = kit.hub(tmp_path, model)["llava"]
    if kind == "peft":
        source = kit.peft_adapter(tmp_path / "liuhaotian" / "lora", model, "lmsys/tiny")
    elif kind != "original":
        source = convert(source, tmp_path / "x", kind).folder
    made = convert(source, tmp_path / "liuhaotian" / "projector", "projector").folder
    found = open_file(made / "mm_projector.bin")
    expected = dict(model.named_parameters())["llama.mm_projector.2.weight"].numpy().T
    scale = np.float32(0.5 if kind == "peft" else 1)
    np.testing.assert_array_equal(found.read("model.mm_projector.2.weight"), expected * scale)
    if kind != "llava-hf":  # which does not say what its tower is called
        loaded = load_model(made, base=tmp_path / "lmsys" / "tiny")
        assert loaded.report.problems() == []


def test_a_torch_file_of_ours_has_the_bytes_it_was_given(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.normal(size=(3, 4)).astype(np.float32),
        "b": np.float32(2).reshape(()),
        "c": np.zeros((0, 2), "f4"),
    }
    write_torch(tmp_path / "x.bin", [Stored(n, "float32", a.shape, lambda a=a: a) for n, a in arrays.items()])
    source = open_file(tmp_path / "x.bin")
    for name, array in arrays.items():
        np.testing.assert_array_equal(source.read(name), array)


@pytest.mark.parametrize("where", ["occupied", "inside"])
def test_a_target_that_cannot_be_is_refused_before_any_work(where, tmp_path):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    target = source / "new" if where == "inside" else tmp_path / "full"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(CheckpointError, match="lies inside" if where == "inside" else "exists already"):
        convert(source, target, "own")
    assert (tmp_path / "full" / "x").read_text() == "mine"


@pytest.mark.parametrize("to", ["own", "original", "paddlemix", "llava-hf"])
def test_a_conversion_that_breaks_off_leaves_nothing(to, tmp_path, monkeypatch):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    calls = []

    def broken(*arguments):
        calls.append(1)
        if len(calls) == 9:
            raise CheckpointError("the disk is gone")
        return original(*arguments)

    original = module._values
    monkeypatch.setattr(module, "_values", broken)
    with pytest.raises(CheckpointError, match="the disk is gone"):
        convert(source, tmp_path / "out" / "x", to)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_killed_conversion_leaves_no_folder_of_that_name(tmp_path):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    code = (
        "import sys, time\n"
        "from paddlemix.checkpoint.convert import layouts as convert, tensors\n"
        "kept = tensors._values\n"
        "def slow(*a):\n    print('at work', flush=True); time.sleep(0.5); return kept(*a)\n"
        "tensors._values = slow\n"
        "convert.convert(sys.argv[1], sys.argv[2], 'own')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "x")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "x").exists()
    convert(source, tmp_path / "x", "own")
    assert verify_folder(tmp_path / "x") == []


def test_memory_while_converting_is_two_tensors(tmp_path):
    """One tensor of 64 MB among 12: the peak grows by less than two of them."""
    model = tiny_model(2, max_position_embeddings=64)
    source = kit.hub(tmp_path, model)["llava"]
    rows = 1 << 17
    big = {name: (d, a) for name, (d, a) in kit.weights_in("llava", model).items() if "vision_tower" not in name}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        big[name] = ("float32", np.ones((rows, model.config.text.hidden_size), np.float32))
    kit.write_config(source, {**kit.llava_config(model, "openai/tiny-clip"), "vocab_size": rows})
    items = [Stored(name, d, a.shape, lambda a=a: a) for name, (d, a) in big.items()]
    write_safetensors(source / "model.safetensors", items)
    code = (
        "import sys, resource\n"
        "import paddlemix.checkpoint.convert.layouts as c, paddlemix.models.llava\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "c.convert(sys.argv[1], sys.argv[2], 'own', dtype='bfloat16')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    largest = rows * model.config.text.hidden_size * 4
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "x")]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[-1]) * 1024 < 2 * largest + 40e6


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    arguments = ["--src", str(source), "--dst", str(tmp_path / "x"), "--to", "own"]
    assert convert_weights.main(arguments) == 0
    assert f"in the layout own: {tmp_path / 'x'}" in capsys.readouterr().out
    assert convert_weights.main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert convert_weights.main([*arguments, "--shard-size", "0"]) == 2


def test_the_target_of_ours_remembers_where_it_came_from(tmp_path):
    source = kit.hub(tmp_path, tiny_model(2))["llava"]
    made = convert(source, tmp_path / "x", "own").folder
    memory = json.loads((made / CONVERSION).read_text())
    assert memory["form"] == "llava"
    assert memory["tower"] == "outside"
