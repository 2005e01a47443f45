# SPDX-License-Identifier: Apache-2.0
"""The tables of towers and decoders: complete, without contradictions, and the only place that knows their names."""

import ast
import dataclasses
import functools
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.settings.decoders.table import DECODERS, decoders
from paddlemix.settings.key_rows import KeyRow, spelled_out
from paddlemix.settings.model import TextConfig, VisionConfig
from paddlemix.settings.towers import table
from paddlemix.settings.towers.table import LLAVA_TOWER, TOWERS, towers
from paddlemix.text.templates import TEMPLATES
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.registry import named

PACKAGE = Path(__file__).resolve().parents[2] / "paddlemix"
OWN_FILES = ("settings/towers/", "settings/decoders/", "settings/model.py", "export/manifest.py")
"""The last has PaddleMIX's names of files, of which two are names of kinds."""


@functools.cache
def texts() -> dict[str, set[object]]:
    """The constants of every file of the package."""
    return {
        path.relative_to(PACKAGE).as_posix(): {
            node.value for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, ast.Constant)
        }
        for path in PACKAGE.rglob("*.py")
    }


def test_the_tables_are_read_without_paddle():
    code = (
        "import sys; from paddlemix.settings.towers.table import TOWERS; "
        "from paddlemix.settings.decoders.table import DECODERS; print(list(TOWERS), list(DECODERS), "
        "sorted(name for name in ('paddle', 'numpy', 'torch') if name in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == f"{list(TOWERS)} {list(DECODERS)} []\n"


@pytest.mark.parametrize("kind", sorted({*TOWERS, *DECODERS, *(item.form_name for item in towers())}))
def test_the_name_of_a_tower_or_decoder_stands_in_its_own_file_only(kind):
    named = [name for name, constants in texts().items() if kind in constants]
    assert [name for name in named if not name.startswith(OWN_FILES)] == []
    assert named, "it stands in its own file"


@pytest.mark.parametrize("entry", [*(item.encoder for item in towers()), *(item.model for item in decoders())])
def test_the_class_behind_a_description_is_there(entry):
    assert isinstance(named(entry), type)


def test_an_entry_without_a_class_is_named():
    with pytest.raises(ValueError, match=r"paddlemix\.models\.vision\.clip has no Missing"):
        named("paddlemix.models.vision.clip:Missing")


@pytest.mark.parametrize("tower", towers(), ids=list(TOWERS))
def test_defaults_of_a_tower_are_fields_of_its_configuration(tower):
    assert set(tower.defaults) <= {item.name for item in dataclasses.fields(VisionConfig)}
    VisionConfig(**tower.defaults, model_type=tower.kind, extra=dict(tower.extra))


@pytest.mark.parametrize("decoder", decoders(), ids=list(DECODERS))
def test_defaults_of_a_decoder_are_fields_of_its_configuration(decoder):
    assert set(decoder.defaults) <= {item.name for item in dataclasses.fields(TextConfig)}
    names = (decoder.template, *(name for _, name in decoder.templates_by_vocabulary))
    assert [name for name in names if name not in TEMPLATES] == []
    re.compile(decoder.linears)


@pytest.mark.parametrize("rows", [item.rows for item in (*towers(), *decoders())])
def test_no_name_stands_twice_in_a_table(rows):
    pairs = [pair for row in rows for pair in spelled_out(row)]
    theirs, ours = zip(*pairs, strict=True)
    assert len(set(theirs)) == len(theirs)
    assert len(set(ours)) == len(ours)


def test_rows_spell_out_every_word():
    row = KeyRow("a.{n}.{x|y}", "b.{n}.{x|y}")
    assert list(spelled_out(row)) == [("a.{n}.x", "b.{n}.x"), ("a.{n}.y", "b.{n}.y")]


def test_a_tower_with_names_that_mean_another_ones_tensor_is_refused():
    clash = dataclasses.replace(
        LLAVA_TOWER, kind="other", rows=(KeyRow("encoder.layers.{n}.mlp.{fc1|fc3}.bias", "blocks.{n}.{fc1|fc3}.bias"),)
    )
    with pytest.raises(ValueError, match=r"'other': vision_model\.encoder\.layers\.\{n\}\.mlp\.fc1\.bias is .*blocks"):
        table.register(clash)
    assert "other" not in TOWERS


def test_layers_and_what_lies_behind_them_are_told_by_name():
    tower = TOWERS.get("clip_vision_model")
    assert tower.layer_of("vision_model.transformer.layers.11.norm1.bias") == 11
    assert tower.layer_of("vision_model.ln_pre.bias") is None
    assert tower.layer_of("other.vision_model.transformer.layers.1.norm1.bias") is None
    assert tower.is_behind_layers("vision_model.ln_post.weight")
    assert not tower.is_behind_layers("vision_model.ln_pre.weight")
    assert TOWERS.get("intern_vit_6b").layer_of("encoder.layers.3.ls1") == 3


def test_a_class_token_is_a_row_only_where_the_tower_has_one(monkeypatch):
    config = VisionConfig(32, 64, 2, 4, 28, 14, select_feature="cls_patch")
    assert config.tokens_per_tile == 5
    without = dataclasses.replace(TOWERS.get(config.model_type), class_token=False)
    monkeypatch.setitem(TOWERS._table, config.model_type, without)
    assert (config.class_tokens, config.tokens_per_tile) == (0, 4)


@pytest.mark.parametrize(
    ("always", "by_key"), itertools.product([(), ("q_proj", "v_proj")], [(), ("q_proj", "o_proj")])
)
def test_the_description_says_which_projections_have_a_bias(monkeypatch, always, by_key):
    described = dataclasses.replace(DECODERS.get("llama"), biased=always, biased_by_key=by_key)
    monkeypatch.setitem(DECODERS._table, "llama", described)
    for attention_bias in (False, True):
        text = TextConfig(64, 16, 32, 1, 2, 1, attention_bias=attention_bias)
        expected = {*always, *(by_key if attention_bias else ())}
        assert {name for name in ("q_proj", "k_proj", "v_proj", "o_proj") if text.has_bias(name)} == expected


def test_an_unknown_tower_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match='unknown vision tower "clip_vision_modle", did you mean "clip_vision_model"'):
        TOWERS.get("clip_vision_modle")
