"""No id of a tokenizer lies outside of the weights' tables; a pad token that does is no reason to stop."""

import json

import pytest

from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.text.vocabulary import fit_rows, rowless
from paddlemix.utils.errors import CheckpointError
from tests.text.text_tools import folder


def with_pad(rows: int | None = None, token: str = "<pad>", **config: object):
    path = folder(**config)
    size = load_tokenizer(path).base_size
    (path / "added_tokens.json").write_text(json.dumps({token: size}))
    return load_tokenizer(path), size


@pytest.mark.parametrize("config", [{}, {"pad_token": "<pad>"}, {"pad_token": "<unk>"}])
def test_a_pad_token_behind_the_last_row_is_dropped(config):
    tokenizer, rows = with_pad(**config)
    assert tokenizer.vocab_size == rows + 1
    fit_rows(tokenizer, rows)
    assert tokenizer.vocab_size == rows
    assert tokenizer.pad_id == tokenizer.unk_id
    assert max(tokenizer.encode("the <pad> cat")) < rows
    assert tokenizer.decode(tokenizer.encode("the <pad> cat")) == "the <pad> cat"


def test_what_is_saved_afterwards_has_no_such_token(tmp_path):
    tokenizer, rows = with_pad(pad_token="<pad>")
    fit_rows(tokenizer, rows)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).vocab_size == rows


def test_a_pad_token_with_a_row_stays():
    tokenizer, rows = with_pad(pad_token="<pad>")
    fit_rows(tokenizer, rows + 1)
    assert tokenizer.pad_id == rows


def test_other_tokens_without_a_row_are_named():
    tokenizer, rows = with_pad(token="<im_start>")
    with pytest.raises(CheckpointError, match=rf"the weights have rows for {rows}, none for <im_start>; put the tok"):
        fit_rows(tokenizer, rows)
    assert len(rowless(tokenizer, rows - 10)) == 11
    with pytest.raises(CheckpointError, match="and 8 more"):
        fit_rows(tokenizer, rows - 10)
