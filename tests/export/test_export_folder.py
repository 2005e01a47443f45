# SPDX-License-Identifier: Apache-2.0
"""An exported folder: complete by itself, and what is wrong with one is said before weights are read."""

import json
import shutil
from pathlib import Path
from typing import Any

import paddle
import pytest

from paddlemix.checkpoint.load import load_model
from paddlemix.export import write
from paddlemix.export.manifest import FACTS, Facts, read_facts
from paddlemix.export.opening import open_static
from paddlemix.export.static_model import require_device
from paddlemix.export.write import export_model
from paddlemix.generation.sampling import Decoding
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils.errors import BackendError, CheckpointError, ConfigError
from paddlemix.utils.files import write_manifest
from tests.export.static_kit import Twins
from tests.tiny import tiny_image

AGAIN = r"copy encode_\w+ anew, or export it again: python deploy/llava/export_model\.py --model_name_or_path"


@pytest.fixture
def export(twins: Twins, tmp_path: Path) -> Path:
    """A copy to be spoilt."""
    return shutil.copytree(twins.export, tmp_path / "out")


def changed(folder: Path, **facts: Any) -> None:
    """Other facts in ``export.json``, and a manifest that knows them."""
    data = json.loads((folder / FACTS).read_text()) | facts
    (folder / FACTS).write_text(json.dumps(data))
    write_manifest(folder)


def test_the_export_needs_nothing_of_the_model_folder(twins: Twins, export: Path) -> None:
    hidden = twins.folder.rename(twins.folder.with_name("away"))
    try:
        prefixes = export / "encode_text" / "llama", export / "encode_image" / "clip"
        opened = open_static(*prefixes, device="cpu")
        prompt = opened.prompt(opened.question("what?", 1), [opened.picture(tiny_image())])
        assert opened.answer([prompt], Decoding(max_new_tokens=3))[0].ids
        assert opened.template.name == twins.dynamic.template.name
        assert opened.ends == twins.dynamic.ends
    finally:
        hidden.rename(twins.folder)


def test_the_facts_name_every_input_with_its_shape(twins: Twins) -> None:
    image = read_facts(twins.export / "encode_image", "encode_image")
    assert image.inputs == {"pixels": "float32 [-1, 3, 28, 28]"}
    assert image.outputs == {"features": "float32 [-1, 4, 32]"}
    text = read_facts(twins.export / "encode_text", "encode_text")
    assert list(text.inputs) == twins.static.model._text.inputs
    assert text.inputs["keys_1"] == "float32 [-1, 2, -1, 8]"
    assert list(text.outputs) == ["scores", "new_keys_0", "new_keys_1", "new_values_0", "new_values_1"]
    assert text.model == image.model


@pytest.mark.parametrize("name", ["llama.pdiparams", "llama.json", "tokenizer.model", "config.json", FACTS])
@pytest.mark.parametrize("fault", ["missing", "short", "other"])
def test_a_file_that_is_not_what_was_written_is_named_with_a_remedy(export: Path, name: str, fault: str) -> None:
    file = export / "encode_text" / name
    content = file.read_bytes()
    if fault == "missing":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if fault == "short" else bytes([content[0] ^ 1]) + content[1:])
    other = "its content is not what was written"
    said = {"missing": "missing", "short": r"\d+ bytes, .* were written", "other": other}
    if (name, fault) == (FACTS, "missing"):
        with pytest.raises(CheckpointError, match=r"holds no exported encode_text .* give OUT/encode_text/llama"):
            open_static(export, device="cpu")
        return
    with pytest.raises(CheckpointError, match=rf"{name}: {said[fault]} \(manifest\.json\); {AGAIN}"):
        open_static(export, device="cpu")


def test_a_folder_without_manifest_is_an_error(export: Path) -> None:
    (export / "encode_text" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=AGAIN):
        open_static(export, device="cpu")


def test_parts_of_different_models_do_not_fit(export: Path) -> None:
    changed(export / "encode_image", model="0" * 64)
    with pytest.raises(CheckpointError, match="are parts of different models .* export both from one"):
        open_static(export, export, device="cpu")


def test_parts_that_change_places_are_named(export: Path) -> None:
    with pytest.raises(CheckpointError, match="this is encode_image; encode_text was expected here"):
        open_static(export / "encode_image", device="cpu")


@pytest.mark.parametrize(("facts", "said"), [({"form": 9}, '"form" 9, expected 1'), ({"paddle": 3}, '"paddle" 3')])
def test_facts_of_another_form_are_an_error(export: Path, facts: dict[str, Any], said: str) -> None:
    changed(export / "encode_text", **facts)
    with pytest.raises(CheckpointError, match=said):
        open_static(export, device="cpu")


def test_a_graph_that_this_paddle_cannot_open_is_an_error_with_both_versions(export: Path) -> None:
    program = export / "encode_text" / "llama.json"
    program.write_text(program.read_text().replace("pd_op", "other_op").replace('"0.', '"9.'))
    changed(export / "encode_text", paddle="9.9")
    with pytest.raises(CheckpointError, match=rf"paddle {paddle.__version__} does not open .* paddle 9\.9 wrote"):
        open_static(export, device="cpu")


def test_another_device_and_another_dtype_are_refused_with_a_remedy(export: Path) -> None:
    facts = Facts("encode_text", "", "3.0.0", "npu", "bfloat16", {}, {})
    with pytest.raises(BackendError, match="was exported on a device npu, and cpu is to run it: .* --device npu"):
        require_device(facts, "cpu")
    require_device(Facts("encode_text", "", "3.0.0", "cpu", "float32", {}, {}), "gpu")
    changed(export / "encode_text", dtype="float16")
    with pytest.raises(ConfigError, match="compute in float16, and float32 is to be used here; export the model again"):
        open_static(export, device="cpu")


def test_images_without_the_vision_graph_are_refused(export: Path) -> None:
    opened = open_static(export, device="cpu")
    with pytest.raises(ConfigError, match="no vision tower"):
        opened.picture(tiny_image())
    with pytest.raises(ConfigError, match="give --first_model_path"):
        opened.model.encode_images(paddle.zeros([1, 3, 28, 28]))


def test_weights_of_few_bits_are_refused(twins: Twins, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load_model(twins.folder)
    loaded.model.bits = 8
    monkeypatch.setattr(write, "load_model", lambda *_, **__: loaded)
    with pytest.raises(ConfigError, match="its weights have 8 bits, .* export the model that it was made of"):
        export_model(twins.folder, tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_language_model_alone_has_no_image_part(tmp_path: Path, twins: Twins, monkeypatch: Any) -> None:
    data = json.loads((twins.folder / "config.json").read_text())
    keys = {"model_type", "architectures"}
    config = LlavaConfig.from_dict({key: value for key, value in data.items() if key not in keys})
    text = config.with_changes(vision=None, image=None, has_image_newline=False)
    from paddlemix.checkpoint.save import save_model
    from paddlemix.text.tokenizer import load_tokenizer
    from tests.tiny import tiny_model

    folder = save_model(tmp_path / "text", tiny_model(config=text), text, load_tokenizer(twins.folder))
    with pytest.raises(ConfigError, match="no vision tower; export it with --encode_text alone"):
        export_model(folder, tmp_path / "out", ["encode_image"], device="cpu")
    done = export_model(folder, tmp_path / "out", device="cpu")
    assert [one.part for one in done] == ["encode_text"]
    opened = open_static(tmp_path / "out", device="cpu")
    assert opened.answer([opened.prompt(opened.question("hello"))], Decoding(max_new_tokens=3))[0].ids
