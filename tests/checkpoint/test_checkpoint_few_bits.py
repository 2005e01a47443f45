# SPDX-License-Identifier: Apache-2.0
"""Models whose weights have 8 or 4 bits: the folder form, loading, memory while loading, and what is refused."""

import json
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import paddle
import pytest

from paddlemix.checkpoint import few_bits, holding, load
from paddlemix.checkpoint.convert import layouts
from paddlemix.checkpoint.convert.layouts import convert
from paddlemix.checkpoint.describe import describe
from paddlemix.checkpoint.formats.safetensors import Stored, write_safetensors
from paddlemix.checkpoint.formats.source import open_folder
from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.adapter import save_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.checkpoint.sources import find_sources
from paddlemix.export.write import export_model
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.models.llava import build_empty, init_weights
from paddlemix.ops.linear import add_lora, linear_layers, lora_layers
from paddlemix.ops.low_bits import form
from paddlemix.ops.low_bits.weights import OnCard
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.model import LlavaConfig, TextConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.tools import convert_weights
from paddlemix.trainer.preparation import open_start
from paddlemix.utils.errors import CheckpointError, ConfigError
from tests.tiny import tiny_model, tiny_tokenizer_folder

QUESTIONS = ("what is shown in this picture?", "how many things are there, and of which colour?")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same model in float32, 8 and 4 bits."""
    place = tmp_path_factory.mktemp("bits")
    model = tiny_model()
    save_model(place / "32", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    for bits in (8, 4):
        argv = ["--src", str(place / "32"), "--dst", str(place / str(bits)), "--to", "own", "--bits", str(bits)]
        assert convert_weights.main(argv) == 0
    return {bits: place / str(bits) for bits in (32, 8, 4)}


def logits(model) -> np.ndarray:
    """Of some ids without an image, by prefill."""
    ids = paddle.arange(5, 45).reshape([2, 20])
    places = paddle.arange(20).expand([2, 20])
    with paddle.no_grad():
        return model(ids, paddle.arange(40).reshape([2, 20]), places).numpy()


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


@pytest.mark.parametrize(("bits", "least"), [(8, 0.999), (4, 0.9)])
def test_a_written_folder_is_mapped_and_equals_rounding_while_loading(
    folders: dict[int, Path], bits: int, least: float
) -> None:
    stored, rounded = load_model(folders[bits]).model, load_model(folders[32], bits=bits).model
    assert stored.bits == rounded.bits == bits
    assert logits(stored).tobytes() == logits(rounded).tobytes()
    assert cosine(logits(stored), logits(load_model(folders[32]).model)) > least
    for name, layer in stored.named_sublayers():
        held = getattr(layer, "low_bits", None)
        for part in held.parts if held is not None else ():
            assert isinstance(part.codes, np.memmap), f"{name} was copied"
    note = json.loads((folders[bits] / "config.json").read_text())["quantization_config"]
    assert note == {"quant_method": "paddlemix", "bits": bits, "group_size": 32}
    size = {number: (folders[number] / "model.safetensors").stat().st_size for number in folders}
    assert size[4] < size[8] < 0.6 * size[32], "vectors and the patches of the tower weigh much in a tiny model"


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_answers_together_equal_those_alone(folders: dict[int, Path], bits: int) -> None:
    opening = {"dtype": "bfloat16"} if bits == 16 else {"bits": bits}
    predictor = Predictor.load(folders[32], device="cpu", **opening)
    assert f"weights of {bits} bits" in predictor.about
    prompts = [predictor.prompt(predictor.question(text)) for text in QUESTIONS]
    decoding = Decoding(max_new_tokens=6)
    alone = [predictor.stream(prompt, decoding).read().ids for prompt in prompts]
    assert [answer.ids for answer in predictor.answer(prompts, decoding)] == alone


def test_a_dtype_beside_bits_is_not_passed_over_in_silence(
    folders: dict[int, Path], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING"):
        model = Predictor.load(folders[32], device="cpu", bits=8, dtype="bfloat16").model
    assert model.llama.layers[0].mlp.down_proj.low_bits.bits == 8
    assert any("bfloat16 was asked for, but a CPU computes in float32" in one.message for one in caplog.records)


def test_an_adapter_is_kept_beside_few_bits_and_folded_in_before_rounding(
    folders: dict[int, Path], tmp_path: Path
) -> None:
    model = load_model(folders[32]).model
    add_lora(model, [".*q_proj", ".*down_proj"], 4, 8, seed=1)
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = "lora_" not in name
    with paddle.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.set_value(paddle.randn(layer.lora_B.shape) * 0.1)
    save_adapter(tmp_path / "a", model, model.config, load_tokenizer(tiny_tokenizer_folder()), base=folders[32])
    wanted = logits(model)
    for loaded in (load_model(tmp_path / "a", base=folders[8]), load_model(tmp_path / "a", bits=8)):
        assert cosine(logits(loaded.model), wanted) > 0.998
    assert list(lora_layers(load_model(tmp_path / "a", base=folders[8]).model))
    with pytest.raises(CheckpointError, match="8 bits: an adapter is not written in few bits; merge it first"):
        convert(tmp_path / "a", tmp_path / "few", "own", bits=8)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(folders[8]))}: its weights have 8 bits, and graphs hold"):
        export_model(tmp_path / "a", tmp_path / "graphs", device="cpu", base=folders[8])
    data = json.loads((tmp_path / "a" / "lora_config.json").read_text())
    (tmp_path / "a" / "lora_config.json").write_text(json.dumps({**data, "use_dora": True}))
    with pytest.raises(CheckpointError):
        load_model(tmp_path / "a", base=folders[8])


def edited(folder: Path, target: Path, change) -> Path:
    """A copy of a folder whose tensors ``change`` has changed."""
    shutil.copytree(folder, target)
    source = open_folder(folder)
    tensors = {name: (info.dtype, source.read(name)) for name, info in source.infos().items()}
    change(tensors)
    write_safetensors(
        target / "model.safetensors",
        [Stored(name, dtype, value.shape, lambda value=value: value) for name, (dtype, value) in tensors.items()],
    )
    return target


WEIGHT = "llama.layers.0.mlp.down_proj.weight"
SCALES = f"{WEIGHT}_scales"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(SCALES), f'"{WEIGHT}" is int8; weights must be one of'),
        (lambda tensors: tensors.pop(WEIGHT), f'missing "{WEIGHT}"'),
        (lambda tensors: tensors.update({WEIGHT: ("int8", tensors[WEIGHT][1][:, :32])}), "has codes ["),
        (
            lambda tensors: tensors.update({f"{WEIGHT}_scales": ("bfloat16", np.zeros((1, 1), "<u2"))}),
            "has scales [1, 1]",
        ),
        (
            lambda tensors: tensors.update({SCALES: ("float16", tensors[SCALES][1].view("<f2"))}),
            "has scales of float16, not of bfloat16",
        ),
        (lambda tensors: tensors[SCALES][1].__setitem__((3, 0), 0x7FC0), f'safetensors: "{SCALES}" holds NaN or inf'),
        (lambda tensors: tensors[SCALES][1].__setitem__((0, 0), 0xFF80), f'safetensors: "{SCALES}" holds NaN or inf'),
    ],
)
def test_what_is_wrong_with_codes_and_scales_is_named(
    folders: dict[int, Path], tmp_path: Path, change, told: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_model(edited(folders[8], tmp_path / "wrong", change))
    assert told in str(caught.value)


def test_of_four_bits_what_decides_more_has_eight() -> None:
    linear = ["llama.vision_tower.vision_tower.vision_model.transformer.layers.0.self_attn.k_proj", "lm_head"]
    linear += ["llama.mm_projector.0", *(f"llama.layers.0.self_attn.{one}_proj" for one in "qkvo")]
    for kv_heads, keys in ((4, 4), (2, 8)):
        text = TextConfig(64, 32, 64, 1, 4, kv_heads)
        found = few_bits.bits_of_weights(linear, 4, text)
        assert list(found.values()) == [4, 8, 8, 4, keys, keys, 4, 4], "the last one is the table of tokens"
        tied = few_bits.bits_of_weights([name for name in linear if name != "lm_head"], 4, text)
        assert tied[few_bits.EMBEDDING] == 8


def test_what_few_bits_cannot_do_is_refused_by_name(folders: dict[int, Path], tmp_path: Path) -> None:
    loaded = load_model(folders[8])
    with pytest.raises(ConfigError, match="weights of 8 bits, which do not train"):
        loaded.model.train()
    with pytest.raises(CheckpointError, match="weights of 8 bits, which are not saved; load the folder of floats"):
        save_model(tmp_path / "again", loaded.model, loaded.config, None)
    for to in ("llava-hf", "own"):
        with pytest.raises(CheckpointError, match="its weights have 8 bits, which serve inference alone"):
            convert(folders[8], tmp_path / to, to)
    with pytest.raises(CheckpointError, match="its weights have 8 bits, which serve inference alone"):
        open_start(TrainingSettings().with_changes(model_name_or_path=str(folders[8])))
    with pytest.raises(CheckpointError, match="its weights have 8 bits, and 4 were asked for"):
        load_model(folders[8], bits=4)
    with pytest.raises(CheckpointError, match="bits=5: expected 4, 8, 16 or None"):
        load_model(folders[32], bits=5)
    with pytest.raises(CheckpointError, match="the layout llava-hf is not written in few bits"):
        convert(folders[32], tmp_path / "hf", "llava-hf", bits=8)
    with pytest.raises(CheckpointError, match="16 bits: own is written in 8 or 4 bits"):
        convert(folders[32], tmp_path / "16", "own", bits=16)
    config = json.loads((folders[8] / "config.json").read_text())
    shutil.copytree(folders[8], tmp_path / "three")
    config["quantization_config"]["bits"] = 3
    (tmp_path / "three" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="expected bits 8 or 4"):
        load_model(tmp_path / "three")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--to", "own", "--bits", "16"], "--bits 16: --to own takes --bits 8, 4; --dtype casts to 32 and 16 bits"),
        (["--to", "gguf", "--bits", "4"], "--bits 4: --to gguf takes --bits 32, 16, 8"),
        (["--to", "llava-hf", "--bits", "8"], "--bits 8: belongs to --to own and --to gguf"),
    ],
)
def test_bits_that_a_layout_lacks_are_refused(flags: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert_weights.main(["--src", "absent", "--dst", "new", *flags]) == 2
    assert told in capsys.readouterr().err


def test_the_doctor_tells_what_each_choice_needs(folders: dict[int, Path]) -> None:
    found = {bits: describe(folder) for bits, folder in folders.items()}
    assert [one.problems for one in found.values()] == [[]] * 3
    needs = found[32].memory
    assert needs["chat, 4 bits"] < needs["chat, 8 bits"] < needs["chat, float32"]
    for bits in (8, 4):  # what was rounded is not trained, and becomes no floats
        assert found[bits].memory == {f"chat, {bits} bits": needs[f"chat, {bits} bits"]}
    assert found[4].facts["bits"] == "weights of 4 bits, for inference"


def test_rounding_while_loading_and_converting_holds_one_tensor_beside_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "_BLOCK", 1 << 15)
    # Ours is [in, out], so that rows of the codes come out of columns.
    model = build_empty(LlavaConfig(TextConfig(64, 512, 1024, 2, 8, 8), None, None))
    init_weights(model)
    save_model(tmp_path / "32", model, model.config, None)
    nbytes = sum(parameter.size for parameter in model.parameters()) * 4
    largest, portion = 512 * 1024 * 4, 2 << 20
    del model
    peaks = []

    def measured(function):
        """From here on: reading a config.json takes 16 MB for a moment."""

        def call(*given):
            tracemalloc.start()
            result = function(*given)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
            return result

        return call

    monkeypatch.setattr(load, "_fill", measured(load._fill))
    monkeypatch.setattr(layouts, "write_weights", measured(layouts.write_weights))
    assert load_model(tmp_path / "32", bits=8).model.bits == 8
    made = convert(tmp_path / "32", tmp_path / "8", "own", bits=8)
    loading, converting = peaks
    assert made.nbytes < 0.28 * nbytes
    assert loading < made.nbytes + largest + portion < 0.6 * nbytes
    assert converting < largest + portion


def test_what_a_card_cannot_hold_in_few_bits_is_widened(
    folders: dict[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnCard, "group", 1 << 20)  # no width is a multiple of it
    whole = load_model(folders[8]).model
    model = build_empty(whole.config, runtime=Runtime("gpu"))
    found = holding.hold_weights(find_sources(folders[8]), model, {}, 8, {})
    assert "llama.embed_tokens.weight" in found
    for name, layer in linear_layers(whole):
        held, shape = layer.low_bits.parts[0], found[f"{name}.weight"].shape
        assert shape == [layer.in_features, layer.out_features]
        assert (held.rows(0, held.shape[0]) == found[f"{name}.weight"].numpy().T).all()


def test_an_adapter_beside_a_base_of_few_bits_shares_its_codes(folders: dict[int, Path]) -> None:
    base = load_model(folders[8])
    other = load_model(folders[8], beside=base)
    for (_, one), (_, two) in zip(linear_layers(base.model), linear_layers(other.model), strict=True):
        assert one.low_bits is two.low_bits
    assert logits(base.model).tobytes() == logits(other.model).tobytes()
