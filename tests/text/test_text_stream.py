# SPDX-License-Identifier: Apache-2.0
"""Streaming: what comes out piece by piece is the decoded whole, cut in front of the first stop string."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from paddlemix.text.stream import TextStream, keyword_stop
from tests.text.text_tools import KINDS, nasty, tokenizer

kinds = st.integers(0, len(KINDS) - 1)
SIZE = tokenizer(0).vocab_size
ids = st.lists(st.one_of(st.integers(0, SIZE - 1), st.integers(3, 258)), max_size=20)
stops = st.lists(
    st.one_of(st.text("ab \ncat", min_size=1, max_size=3), st.sampled_from(["###", "\ufffd", "</s>"])), max_size=3
)


def pour(kind, numbers, stops=()):
    stream = TextStream(tokenizer(kind), stops)
    return stream, [stream.put(number) for number in numbers] + [stream.end()]


@given(ids, kinds)
@settings(max_examples=400, deadline=None)
@example([tokenizer(0).token_id("\u2581"), tokenizer(0).token_id("\u2581the")], 1)
def test_streamed_text_is_the_text_of_all_ids(numbers, kind):
    assert "".join(pour(kind, numbers)[1]) == tokenizer(kind).decode(numbers)


@given(nasty, kinds)
@settings(max_examples=150, deadline=None)
def test_valid_text_is_streamed_without_half_characters(text, kind):
    numbers = tokenizer(kind).encode(text, bos=False, specials=False)
    parts = pour(kind, numbers)[1]
    assert all(part.count("\ufffd") <= text.count("\ufffd") for part in parts)
    assert "".join(parts) == tokenizer(kind).decode(numbers)


@given(ids, kinds, stops)
@settings(max_examples=300, deadline=None)
def test_a_stop_string_is_cut_exactly_and_no_part_of_it_is_given_early(numbers, kind, stops):
    special = [
        i for i, n in enumerate(numbers) if n in tokenizer(kind).special_ids and tokenizer(kind).token(n) in stops
    ]
    whole = tokenizer(kind).decode(numbers[: special[0]] if special else numbers)
    cuts = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]
    stream, parts = pour(kind, numbers, stops)
    assert "".join(parts) == (whole[: min(cuts)[1]] if cuts else whole)
    assert stream.stopped == bool(cuts or special)


@given(ids, kinds, stops)
@settings(max_examples=200, deadline=None)
def test_every_moment_shows_a_beginning_of_the_final_text(numbers, kind, stops):
    _, parts = pour(kind, numbers, stops)
    final = "".join(parts)
    assert all(final.startswith("".join(parts[:i])) for i in range(len(parts)))


def test_a_character_of_three_bytes_comes_at_its_last_one():
    numbers = tokenizer(0).encode("a\u4f60b", bos=False)
    stream = TextStream(tokenizer(0))
    assert [stream.put(number) for number in numbers] == ["a", "", "", "\u4f60", "b"]


def test_a_stop_string_over_the_border_of_tokens_is_held_back():
    numbers = [tokenizer(0).token_id(piece) for piece in ("\u2581the", "\u2581", "c", "a", "t", "s")]
    stream = TextStream(tokenizer(0), [" cat"])
    assert [stream.put(number) for number in numbers] == ["the", "", "", "", "", ""]
    assert stream.stopped


def test_the_end_gives_back_what_only_looked_like_a_stop_string():
    stream = TextStream(tokenizer(0), ["cats"])
    parts = [stream.put(tokenizer(0).token_id(piece)) for piece in ("c", "a", "t")]
    assert (parts, stream.end(), stream.end()) == (["", "", ""], "cat", "")


@pytest.mark.parametrize("split", [["\u2581the"], ["\u2581", "t", "h", "e"]])
def test_the_stop_string_that_is_complete_first_counts_however_the_text_is_split(split):
    stream, parts = pour(0, [tokenizer(0).token_id(piece) for piece in split], ["the", "h"])
    assert "".join(parts) == "t"
    assert stream.stopped


def test_a_special_token_written_like_a_stop_string_ends_the_stream():
    ours = tokenizer(0)
    numbers = [ours.token_id("\u2581the"), ours.eos_id, ours.token_id("t")]
    assert pour(0, numbers, ["</s>"])[1] == ["the", "", "", ""]
    assert "".join(pour(0, numbers, ["###"])[1]) == "thet"


def test_after_a_stop_nothing_comes():
    stream, _ = pour(0, tokenizer(0).encode("the cat"), ["e"])
    assert stream.put(tokenizer(0).token_id("a")) == ""


@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_the_keyword_criterion_sees_ids_and_text(kind):
    ours = tokenizer(kind)
    new = ours.encode("the cat is", bos=False)
    assert keyword_stop(ours, ["nothing"], [1], new) is None
    assert keyword_stop(ours, ["</s>"], [1], [*new, ours.eos_id]) == len(new) + 1
