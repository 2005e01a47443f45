# SPDX-License-Identifier: Apache-2.0
"""Rendering: ids are those of the whole text, labels are the answers, prompts are prefixes of samples."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from paddlemix.text import chat_template, templates
from paddlemix.text.messages import Conversation, Message, Segment, first_turn_with_images, placed_messages
from paddlemix.text.render import render, render_segments
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError
from tests.text.text_tools import KINDS, nasty, texts, tokenizer

TRAINABLE = sorted(name for name, template in templates.TEMPLATES.items() if not template.train_as)
names = st.sampled_from(TRAINABLE)
kinds = st.integers(0, len(KINDS) - 1)


def conversation(pairs, images=0):
    messages = []
    for i, (user, answer) in enumerate(pairs):
        messages += [Message("user", "<image>\n" * (images if i == 0 else 0) + user), Message("assistant", answer)]
    return messages


rounds = st.lists(st.tuples(texts.filter(bool), texts.filter(bool)), min_size=1, max_size=3)
nasty_rounds = st.lists(st.tuples(nasty.filter(bool), nasty.filter(bool)), min_size=1, max_size=3)


@given(names, nasty_rounds, kinds, st.booleans(), st.integers(0, 2), st.booleans())
@settings(max_examples=200, deadline=None)
def test_ids_of_a_sample_are_those_of_its_whole_text(name, pairs, kind, normal, images, answer_open):
    ours = tokenizer(kind, normal)
    messages = conversation(pairs, images)
    got = render(
        templates.get(name), messages[: len(messages) - answer_open], ours, answer_open=answer_open, specials=True
    )
    assert got.ids == ours.encode_with_images(got.text)
    assert len(got.labels) == len(got.ids)
    assert all(label in (IGNORE_INDEX, number) for label, number in zip(got.labels, got.ids, strict=True))


def answer_starts(sample, count):
    """Index of the first learnt id of each answer."""
    starts = [i for i, label in enumerate(sample.labels) if label >= 0 and (i == 0 or sample.labels[i - 1] < 0)]
    return starts if len(starts) == count else None


@given(names, rounds, kinds, st.booleans(), st.integers(0, 2))
@settings(max_examples=300, deadline=None)
@example("mpt", [("a", "\n\nb"), ("c", "d")], 0, False, 1)
@example("v1", [("a", "  b"), ("c", " ")], 0, False, 1)
@example("mpt", [("a", "the cat")], 0, True, 0)
def test_ids_of_a_sample_up_to_an_answer_are_those_of_the_prompt(name, pairs, kind, normal, images):
    ours, template = tokenizer(kind, normal), templates.get(name)
    messages = conversation(pairs, images)
    sample = render(template, messages, ours, answer_open=False)
    starts = answer_starts(sample, len(pairs))
    assume(starts is not None)  # answers that touch (an empty head) or that vanish in normalization
    for i, start in enumerate(starts):
        prompt = render(template, messages[: 2 * i + 1], ours, answer_open=True)
        assert prompt.ids == sample.ids[:start]


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_every_template_learns_its_answers_and_nothing_else(name, kind):
    ours, template = tokenizer(kind), templates.get(name)
    messages = conversation(
        [("<image>\nwhat is it?", "a red cat."), ("<image> USER: and ASSISTANT: this?", "the mat </s> is red")]
    )
    got = render(template, messages, ours, answer_open=False)
    learnt = [ours.decode([n for n in part if n >= 0], skip_special=False) for part in runs(got.labels)]
    tail = template.answer.tail
    assert [text.strip() for text in learnt] == [f"a red cat.{tail}".strip(), f"the mat </s> is red{tail}".strip()]


def runs(labels):
    found, before = [], IGNORE_INDEX
    for label in labels:
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                found.append([])
            found[-1].append(label)
        before = label
    return found


@given(names, nasty_rounds, kinds, st.booleans())
@settings(max_examples=200, deadline=None)
def test_special_tokens_come_from_the_template_alone(name, pairs, kind, normal):
    ours, template = tokenizer(kind, normal), templates.get(name)
    with_text = render(template, conversation(pairs), ours, answer_open=False)
    without = render(template, conversation([("x", "y")] * len(pairs)), ours, answer_open=False)
    marks = ours.special_ids - {ours.unk_id}
    assert [n for n in with_text.ids if n in marks] == [n for n in without.ids if n in marks]


def test_special_tokens_in_messages_are_parsed_when_asked_for():
    messages = conversation([("a", "yes </s> no")])
    assert render(templates.get("v1"), messages, tokenizer(0), answer_open=False).ids.count(2) == 1
    assert render(templates.get("v1"), messages, tokenizer(0), answer_open=False, specials=True).ids.count(2) == 2


def test_marks_around_an_image_place_are_tokens_and_the_same_marks_in_text_are_not():
    ours = tokenizer(0)
    got = render(
        templates.get("v1"), [Message("user", "<im_start><image><im_end>\nsay <im_start>")], ours, answer_open=True
    )
    place = got.ids.index(IMAGE_TOKEN_INDEX)
    marks = [ours.token_id("<im_start>"), ours.token_id("<im_end>")]
    assert [got.ids[place - 1], got.ids[place + 1]] == marks
    assert got.ids.count(marks[0]) == 1


def test_a_row_without_pictures_keeps_the_word_image_as_text():
    messages = [Message("user", "what is <image>?"), Message("assistant", "a tag")]
    got = render(templates.get("v1"), messages, tokenizer(0), answer_open=False, images=False)
    assert IMAGE_TOKEN_INDEX not in got.ids
    assert got.ids == tokenizer(0).encode(got.text)


def test_an_empty_answer_teaches_nothing():
    got = render(templates.get("v1"), conversation([("a", "")]), tokenizer(0), answer_open=False)
    assert set(got.labels) == {IGNORE_INDEX}


def test_a_token_across_the_border_is_learnt_only_if_the_prompt_leads_to_it():
    ours = tokenizer(0)
    # "▁cat" begins with the last space of the head: the prompt ("the ") has another id there, so nothing leads to it.
    split = [Segment("the "), Segment("cat", True), Segment("</s>", True)]
    got = render_segments(split, ours)
    assert [label for label in got.labels if label >= 0] == [2]
    # "athe" is "at", "he", but the prompt "a" is one piece: nothing leads to any token of it.
    got = render_segments([Segment("a"), Segment("the", True)], ours)
    assert ours.pieces("a").ids != got.ids[1:2]
    assert [label for label in got.labels if label >= 0] == got.ids[-1:]
    # sentencepiece's defaults drop the trailing space of a prompt: there the prompt does lead to the token.
    got = render_segments(split, tokenizer(0, True))
    assert len([label for label in got.labels if label >= 0]) >= 2


def test_a_system_message_replaces_the_system_text_inside_its_marks():
    text = templates.prompt_text(
        templates.get("mpt"), [Message("system", "Be brief."), Message("user", "hi")], answer_open=True
    )
    assert text == "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nhi<|im_end|><|im_start|>assistant\n"
    text = templates.prompt_text(
        templates.get("llama_2"), [Message("system", ""), Message("user", "hi")], answer_open=True
    )
    assert text == "[INST] hi [/INST]"


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        (["assistant"], 'message 0 has role "assistant", expected "user"'),
        (["user", "user"], 'message 1 has role "user", expected "assistant"'),
        (["system", "user", "assistant", "assistant"], 'message 3 has role "assistant", expected "user"'),
    ],
)
def test_turns_out_of_order_are_named(roles, said):
    with pytest.raises(DataError, match=said):
        render(templates.get("v1"), [Message(role, "x") for role in roles], tokenizer(0), answer_open=False)


def test_a_prompt_must_end_with_a_question():
    with pytest.raises(DataError, match="a prompt must end with a user message"):
        render(templates.get("v1"), conversation([("a", "b")]), tokenizer(0), answer_open=True)


@pytest.mark.parametrize("name", ["v0", "default", "plain", "v0_mmtag"])
def test_a_sample_is_not_written_in_a_layout_that_only_prompts_have(name):
    with pytest.raises(ConfigError, match=f'templates.get."{name}", training=True'):
        render(templates.get(name), conversation([("a", "b")]), tokenizer(0), answer_open=False)
    assert render(templates.get(name, training=True), conversation([("a", "b")]), tokenizer(0), answer_open=False).ids


def test_an_unknown_template_names_the_nearest_one():
    with pytest.raises(ConfigError, match='unknown template "vicuna_v2", did you mean "vicuna_v1"'):
        templates.get("vicuna_v2")


def row(*values):
    return [Message(("user", "assistant")[i % 2], value) for i, value in enumerate(values)]


def texts_of(messages):
    return [message.text for message in messages]


def test_one_picture_moves_to_the_front_of_its_turn_and_several_marks_merge():
    layout = templates.get("v1")
    got = placed_messages(row("see <image> and <image> ", "x", "more"), layout=layout, images=1)
    assert texts_of(got) == ["<image>\nsee  and", "x", "more"]


def test_several_pictures_of_a_row_stay_where_they_stand():
    layout = templates.get("v1")
    got = placed_messages(row("<image><image> compare", "x", "and <image>?", "y"), layout=layout, images=3)
    assert texts_of(got) == ["<image><image> compare", "x", "<image>\nand ?", "y"]


def test_a_row_without_pictures_stays_as_it_is():
    got = placed_messages(row(" <image> x ", "y"), layout=templates.get("v1"), images=0)
    assert texts_of(got) == [" <image> x ", "y"]


def test_tags_and_marks_stand_around_the_place():
    got = placed_messages(row("<image>\nx", "y"), layout=templates.get("v1_mmtag"), images=1, use_im_start_end=True)
    assert got[0].text == "<Image><im_start><image><im_end></Image>\nx"


def test_a_row_that_begins_with_the_answer_loses_it_unless_the_layout_takes_it():
    rows = [Message("assistant", "hi"), *row("a", "b")]
    assert len(placed_messages(rows, layout=templates.get("v1"), images=0)) == 2
    assert len(placed_messages(rows, layout=templates.get("v0", training=True), images=0)) == 3


def test_a_conversation_before_an_answer_keeps_the_images_that_were_shown():
    talk = Conversation((Message("system", "s"), *row("<image> a", "b", "<image> c", "d")), ("1.png", "2.png"), "7")
    assert talk.before_answer() == Conversation(talk.messages[:4], ("1.png", "2.png"), "7")
    assert talk.before_answer(0) == Conversation(talk.messages[:2], ("1.png",), "7")
    with pytest.raises(IndexError):
        talk.before_answer(2)


def test_a_chat_with_two_pictures_begins_with_two_places():
    assert texts_of(first_turn_with_images("why <image>?", 2)) == ["<image>\n<image>\nwhy ?"]
    assert texts_of(first_turn_with_images("why?", 1, mmtag=True)) == ["<Image><image></Image>", "Received.", "why?"]


def test_a_plain_prompt_is_the_picture_alone_as_in_training():
    got = render(
        templates.get("plain", training=True), [Message("user", "<image>\nWhat?")], tokenizer(0), answer_open=True
    )
    assert got.ids == [1, IMAGE_TOKEN_INDEX]


TEMPLATE = {
    "system": "Be {{ 'kind' }}. ",
    "conversation": [
        "{% if is_first %}Round{% else %} [{{index + 1}}]{% endif %} USER: {{user}} ASSISTANT: ",
        "{{bot}}</s>",
    ],
    "query": "{% if is_first %}Round{% else %} [{{index + 1}}]{% endif %} USER: {{query}} ASSISTANT: ",
}


def test_a_chat_template_file_gives_structured_segments():
    messages = conversation([("USER: a", "b"), ("c", "d")])
    segments = chat_template.ChatTemplate(TEMPLATE).segments(messages, answer_open=False)
    assert "".join(part.text for part in segments) == (
        "Be kind. Round USER: USER: a ASSISTANT: b</s> [2] USER: c ASSISTANT: d</s>"
    )
    assert "".join(part.text for part in segments if part.learns) == " b</s> d</s>"
    assert [part.text for part in segments if part.quoted] == ["USER: a", "b", "c", "d"]


@given(nasty_rounds, kinds)
@settings(max_examples=100, deadline=None)
def test_prompts_of_a_chat_template_are_prefixes_of_its_samples(pairs, kind):
    ours, layout = tokenizer(kind), chat_template.ChatTemplate(TEMPLATE)
    messages = conversation(pairs)
    sample = render(layout, messages, ours, answer_open=False)
    starts = answer_starts(sample, len(pairs))
    assume(starts is not None)
    for i, start in enumerate(starts):
        assert render(layout, messages[: 2 * i + 1], ours, answer_open=True).ids == sample.ids[:start]


def test_a_chat_template_that_writes_the_begin_token_gets_no_second_one():
    layout = chat_template.ChatTemplate({"conversation": ["<s>Q {{user}} A", " {{bot}}</s>"]})
    assert render(layout, conversation([("a", "b")]), tokenizer(0), answer_open=False).ids.count(1) == 1
    assert layout.stops == ("</s>",)


def test_pairs_with_an_open_answer_end_in_front_of_it():
    messages = conversation([("a", "b"), ("c", "d")])[:-1]
    segments = chat_template.ChatTemplate(TEMPLATE).segments(messages, answer_open=True)
    assert "".join(part.text for part in segments).endswith("USER: c ASSISTANT:")


def test_user_text_is_never_read_as_a_template():
    messages = conversation([("{{bot}} {% if %}", "{{user}}")])
    segments = chat_template.ChatTemplate(TEMPLATE).segments(messages, answer_open=False)
    assert [part.text for part in segments if part.quoted] == ["{{bot}} {% if %}", "{{user}}"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conversation": ["{{user}}"]}, "expected .user template, assistant template."),
        ({"conversation": ["{{user}}", "bot"]}, "must hold .*bot"),
        ({"conversation": ["{{user.__class__}}", "{{bot}}"]}, "is not supported"),
        ({"conversation": ["{{open('x')}}", "{{bot}}"]}, "is not supported"),
        ({"conversation": ["{{name}}", "{{bot}}"]}, "known are the names"),
        ({"conversation": ["{% for x in y %}{{user}}", "{{bot}}"]}, "known are if, elif, else and endif"),
        ({"conversation": ["{% if is_first %}{{user}}", "{{bot}}"]}, "no {% endif %}"),
        ({"conversation": ["{{user | upper}}", "{{bot}}"]}, 'the only known filter is "trim"'),
        ({"extra": 1}, "expected an object with the keys system, conversation, query"),
        ({"chat_template": "x"}, "HF transformers"),
        ({"system": 3}, "/system is 3; expected a text"),
    ],
)
def test_a_wrong_chat_template_is_named(change, said):
    with pytest.raises(DataError, match=said):
        chat_template.ChatTemplate(TEMPLATE | change)


def test_line_rules_of_blocks_are_those_of_paddlenlp():
    text = "a\n  {% if is_first %}\nb {{- user }}\n  {%- endif %} c"
    segments = chat_template.ChatTemplate({"conversation": [text, "{{bot}}"]}).segments(
        [Message("user", "U"), Message("assistant", "B")], answer_open=False
    )
    assert "".join(part.text for part in segments) == "a\nbU cB"


def test_a_missing_chat_template_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: no such file"):
        chat_template.load(tmp_path / "nowhere.json")
