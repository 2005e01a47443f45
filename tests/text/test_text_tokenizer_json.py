# SPDX-License-Identifier: Apache-2.0
"""Folders with tokenizer.json alone: the same ids as with tokenizer.model, as tokenizers, or an error that says why."""

import functools
import json
import os
import subprocess

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paddlemix.text import spm_rebuild
from paddlemix.text.stream import TextStream
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.errors import CheckpointError
from tests.text.text_tools import SPECIALS, fast_json, folder, json_folder, model_bytes

SYMBOL = "<|im_end|>"
EXTRA = ("<image>", "<im_start>")
SCHEMES = ("prepend", "replace", "first", "always", "never")
_bits = st.sampled_from(
    [
        *(" ", "  ", "   ", "\n", "\t", "the cat", "USER:", "what is", "a", "b", "0123", "\u4f60\u597d", "\U0001f600"),
        *("\u2581", "\u2581\u2581", "\0", "e\u0301", "<0x0A>", "<", ">", "</s", *SPECIALS, *EXTRA),
    ]
)
strings = st.lists(st.one_of(_bits, st.text(max_size=4)), max_size=8).map("".join)
hundreds = pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])


@functools.cache
def data(scheme: str = "prepend") -> str:
    return json.dumps(fast_json(model_bytes(symbols=(SYMBOL,)), scheme, extra=EXTRA))


def changed(scheme: str = "prepend", **model: object) -> dict:
    """The content of a tokenizer.json with keys of its model replaced."""
    found = json.loads(data(scheme))
    found["model"] |= model
    return found


@functools.cache
def pair(**config: object) -> tuple[Tokenizer, Tokenizer]:
    """Tokenizers of one folder, read from tokenizer.json alone and then with tokenizer.model beside it."""
    path = json_folder(json.loads(data()), **config)
    ours = load_tokenizer(path)
    (path / "tokenizer.model").write_bytes(model_bytes(symbols=(SYMBOL,)))
    return ours, load_tokenizer(path)


@pytest.mark.parametrize("config", [{}, {"legacy": False}, {"tokenizer_kind": "fast"}, {"tokenizer_kind": "slow_4_31"}])
@hundreds
def test_ids_text_and_offsets_equal_those_with_the_model_file(config, count):
    ours, theirs = pair(**config)
    assert (ours.kind, ours.legacy, ours.vocab_size) == (theirs.kind, theirs.legacy, theirs.vocab_size)

    @given(strings, st.booleans())
    @example("a  b\n\u2581 <|im_end|> </s> <unk>x", False)
    @settings(max_examples=count, deadline=None)
    def check(text, specials):
        ids = theirs.encode(text, specials=specials)
        assert ours.encode(text, specials=specials) == ids
        assert ours.pieces(text) == theirs.pieces(text)
        assert ours.decode(ids) == theirs.decode(ids)

    check()


@pytest.mark.parametrize("scheme", SCHEMES)
@hundreds
def test_ids_and_text_equal_those_of_the_tokenizers_package(scheme, count):
    tokenizers = pytest.importorskip("tokenizers")
    path = json_folder(json.loads(data(scheme)))
    theirs = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    ours = load_tokenizer(path, kind="fast" if scheme == "prepend" else None)

    @given(strings)
    @example(" a")
    @example("</s> a</s>a")
    @settings(max_examples=count, deadline=None)
    def check(text):
        ids = ours.encode(text)
        assert ids == theirs.encode(text).ids
        assert ours.decode(ids, skip_special=False) == theirs.decode(ids, skip_special_tokens=False)
        assert ours.decode(ids) == theirs.decode(ids)

    check()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_saved_folder_has_a_model_file_and_is_the_same_tokenizer(scheme, tmp_path):
    ours = load_tokenizer(json_folder(json.loads(data(scheme))))
    ours.save(tmp_path)
    assert (tmp_path / "tokenizer.model").is_file()
    again = load_tokenizer(tmp_path)
    for text in ("a b", " a", "</s> x</s>x", "what is\n the cat <|im_end|> <image>\U0001f600"):
        assert again.pieces(text) == ours.pieces(text)
        assert again.encode(text) == ours.encode(text)
        assert again.decode(ours.encode(text)) == ours.decode(ours.encode(text))


@pytest.mark.parametrize("scheme", SCHEMES[1:])
def test_streamed_text_is_the_decoded_text(scheme):
    ours = load_tokenizer(json_folder(json.loads(data(scheme))))
    broken = [ours.token_id(f"<0x{byte:02X}>") for byte in (*"\U0001f600".encode(), 0xFF)]
    ids = [*ours.encode("the cat \U0001f600 sat", bos=False), *broken]
    assert ours.decode(ids).endswith("sat" + 5 * "\ufffd")
    stream = TextStream(ours, [])
    assert "".join([*map(stream.put, ids), stream.end()]) == ours.decode(ids)


@pytest.mark.parametrize(
    ("bos", "config", "wanted"),
    [
        (True, {}, True),
        (False, {}, False),
        (False, {"add_bos_token": True}, True),
        (True, {"add_bos_token": False}, False),
    ],
)
def test_the_begin_token_is_that_of_the_config_else_of_the_template(bos, config, wanted):
    found = load_tokenizer(json_folder(fast_json(model_bytes(), bos=bos), **config))
    assert (found.encode("a")[0] == found.bos_id) is wanted


def test_the_order_of_merges_counts_not_that_of_ids():
    """A later piece may have the better score; here "▁t" before "th" or not decides how "the" is cut."""
    found = fast_json(model_bytes())
    vocab, merges = found["model"]["vocab"], found["model"]["merges"]
    groups = list(dict.fromkeys(merge.replace(" ", "") for merge in merges))
    groups.reverse()
    merges.sort(key=lambda merge: groups.index(merge.replace(" ", "")))
    ours = load_tokenizer(json_folder(found))
    straight = load_tokenizer(json_folder(fast_json(model_bytes())))
    text = "what is the cat doing on a red mat"
    ids = ours.encode(text)
    assert ids != straight.encode(text)
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.models.BPE(vocab, [tuple(m.split(" ")) for m in merges], byte_fallback=True)
    whole = "\u2581" + text.replace(" ", "\u2581")
    assert ids[1:] == [token.id for token in theirs.tokenize(whole)]


REFUSED = {
    "its model is Unigram": {"model": {"type": "Unigram"}},
    "its model is WordPiece": {"model": {"type": "WordPiece"}},
    "its model is of no known form": {"model": None},
    "its normalizer is NFC": {"normalizer": {"type": "NFC"}},
    "its pre-tokenizer Split": {"pre_tokenizer": {"type": "Split", "behavior": "Isolated"}},
    "its decoder is WordPiece": {"decoder": {"type": "WordPiece"}},
    '"added_tokens" is no list': {"added_tokens": 7},
    "which is no number or another piece's": {"added_tokens": [{"content": "<x>", "id": 5}]},
    "id True, which is no number": {"added_tokens": [{"content": "<x>", "id": True}]},
    "in the vocabulary it has 2": {"added_tokens": [{"content": "</s>", "id": 9000}]},
}
WRONG_MODELS = {
    '"model.byte_fallback" is False': {"byte_fallback": False},
    '"model.dropout" is 0.1': {"dropout": 0.1},
    '"model.ignore_merges" is True': {"ignore_merges": True},
    '"model.vocab" has list': {"vocab": []},
    '"model.vocab" has 0 entries': {"vocab": {}},
    "each of them once": {"vocab": {"a": 0, "b": 0}},
    "id -1; expected": {"vocab": {"a": -1}},
    "id 1; expected 0 to 0": {"vocab": {"a": 1}},
    "id '0'; expected": {"vocab": {"a": "0"}},
    "id True; expected": {"vocab": {"a": 0, "b": True}},
    "expected 1 to 256 of text": {"vocab": {"": 0}},
    "(300 characters)": {"vocab": {"a" * 300: 0}},
    "lacks 256 of the 256 byte pieces": {"vocab": {"a": 0}},
    "its unknown token 'nothing' is not": {"unk_token": "nothing"},
    "its unknown token 7 is not": {"unk_token": 7},
    '"model.merges" is NoneType': {"merges": None},
    "merge 0 is 'a b c'; expected two pieces": {"merges": ["a b c"]},
    "merge 0 is [1, 2]": {"merges": [[1, 2]]},
    "merge 0 needs the piece 'qzq', which": {"merges": ["qzq a"]},
    "its merges lack": {"merges": []},
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_kinds_are_refused_by_name(what):
    path = json_folder(json.loads(data()) | REFUSED[what])
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(path)
    text = str(caught.value)
    assert text.startswith(f"{path / 'tokenizer.json'}: ")
    assert what in text
    assert text.endswith("copy tokenizer.model from the base language model into this folder")


@pytest.mark.parametrize("what", WRONG_MODELS)
def test_vocabularies_that_no_model_file_has_are_refused(what):
    path = json_folder(changed(**WRONG_MODELS[what]))
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(path)
    assert what in str(caught.value)
    assert "copy tokenizer.model" in str(caught.value)


def test_a_split_metaspace_and_a_decoder_of_another_scheme_are_refused():
    found = changed("first")
    found["pre_tokenizer"]["split"] = True
    with pytest.raises(CheckpointError, match="pre-tokenizer Metaspace .*split.*: true"):
        load_tokenizer(json_folder(found))
    found = changed("first") | {"decoder": changed("never")["decoder"]}
    with pytest.raises(CheckpointError, match='does not fit the dummy space "first"'):
        load_tokenizer(json_folder(found))


def test_merges_that_are_not_the_derived_ones_are_refused():
    merges = changed()["model"]["merges"]
    pieces = [merge.replace(" ", "") for merge in merges]
    twice = next(i for i in range(len(pieces) - 1) if pieces[i] == pieces[i + 1])
    apart = [*merges[:twice], *merges[twice + 1 :], merges[twice]]
    with pytest.raises(CheckpointError, match="is not beside the others that make"):
        load_tokenizer(json_folder(changed(merges=apart)))
    with pytest.raises(CheckpointError, match="is not beside the others"):
        load_tokenizer(json_folder(changed(merges=[*merges, merges[-1]])))
    with pytest.raises(CheckpointError, match="its merges lack"):
        load_tokenizer(json_folder(changed(merges=merges[:twice] + merges[twice + 1 :])))


def test_a_piece_of_a_character_that_is_none_is_refused():
    vocab = changed()["model"]["vocab"]
    found = changed(vocab=vocab | {"a\u00e4": len(vocab)}) | {"added_tokens": []}
    with pytest.raises(CheckpointError, match="holds a character that is no piece of its own"):
        load_tokenizer(json_folder(found))


@pytest.mark.parametrize(
    ("piece", "told"), [("\\ud800", "half of a surrogate pair"), ("\\u0000x", "expected 1 to 256 of text")]
)
def test_pieces_that_are_no_text_are_refused(piece, told):
    path = json_folder(changed())
    text = (path / "tokenizer.json").read_text(encoding="utf-8").replace('"<s>": 1', f'"{piece}": 1')
    (path / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=told):
        load_tokenizer(path)


def test_sizes_are_bounded(monkeypatch):
    path = json_folder(changed())
    monkeypatch.setattr(spm_rebuild, "MAX_CHARS", 100)
    with pytest.raises(CheckpointError, match="more than 100 characters"):
        load_tokenizer(path)
    monkeypatch.setattr(spm_rebuild, "MAX_PIECES", 10)
    with pytest.raises(CheckpointError, match="expected an object of 1 to 10 pieces"):
        load_tokenizer(path)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 100_000, "[]", "{", '{"model": "' + "x" * 99])
def test_files_that_are_no_json_objects_are_refused(text, tmp_path):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: (not valid JSON|expected an object)"):
        load_tokenizer(tmp_path)


def test_a_deeply_nested_pipeline_is_an_error_of_the_file(tmp_path):
    """Also where the JSON is just not too deep to be read, but too deep for what comes behind."""
    for depth in range(500, 1010):
        (tmp_path / "tokenizer.json").write_text(
            '{"model": {"type": "BPE", "byte_fallback": true}, "normalizer": ' + "[" * depth + "]" * depth + "}"
        )
        with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
            load_tokenizer(tmp_path)


@pytest.mark.parametrize("key", ["dropout", "unk_token", "merges", "vocab", "added_tokens"])
def test_values_of_any_shape_are_told_in_one_short_line(key):
    deep: list = []
    for _ in range(400):
        deep = [deep, "x" * 50]
    where = {"merges": [deep], "vocab": {"a": deep}}.get(key, deep)
    found = changed() | {"added_tokens": [{"content": deep, "id": 1}]} if key == "added_tokens" else changed()
    found["model"] |= {} if key == "added_tokens" else {key: where}
    with pytest.raises(CheckpointError) as caught:
        load_tokenizer(json_folder(found))
    assert len(str(caught.value)) < 400


@pytest.mark.reference
def test_what_transformers_5_saves_loads_with_its_ids(tmp_path):
    python = os.environ.get("PADDLEMIX_TORCH_PYTHON")
    if not python:
        pytest.skip("PADDLEMIX_TORCH_PYTHON names no interpreter with torch")
    texts = ["a b", " a", "  the cat\n", "</s> x</s>x", "<s>USER: what\u2581 is \U0001f600</s>", "\n a\t\u4f60"]
    code = (
        "import json, sys; from transformers import LlamaTokenizer\n"
        "own = LlamaTokenizer.from_pretrained(sys.argv[1], **json.loads(sys.argv[4]))\n"
        "own.save_pretrained(sys.argv[2])\n"
        "ids = [own(text).input_ids for text in json.loads(sys.argv[3])]\n"
        "print(json.dumps([ids, [own.decode(row, skip_special_tokens=True) for row in ids]]))"
    )
    source = folder(model_bytes(), add_bos_token=True)
    for number, options in enumerate([{}, {"legacy": True}, {"add_prefix_space": False}]):
        saved = tmp_path / str(number)
        run = [python, "-c", code, str(source), str(saved), json.dumps(texts), json.dumps(options)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        ids, decoded = json.loads(done.stdout.splitlines()[-1])
        assert not (saved / "tokenizer.model").exists()
        ours = load_tokenizer(saved)
        assert [ours.encode(text) for text in texts] == ids
        assert [ours.decode(row) for row in ids] == decoded
