"""Every form of a row with two answers, or with one and what is thought of it, and what is wrong with others."""

import pytest

from paddlemix.datasets.preference_rows import read_preference
from paddlemix.datasets.records import Place, UnreadKeys
from paddlemix.datasets.rows import read_row
from paddlemix.text.messages import Message
from paddlemix.utils.errors import DataError

PLACE = Place("rows.json", "/3")
USER = [{"role": "user", "content": "what?"}]


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def said(row, **how):
    found = read_preference(row, PLACE, **how)
    turns = [(message.role, message.text) for message in found.talk.messages]
    assert turns[-1][0] == "assistant"
    return turns, found.rejected if found.desirable is None else found.desirable, found.talk.images


PLAIN = [("user", "what?"), ("assistant", "good")], "bad"
PICTURED = [("user", "<image>\nwhat?"), ("assistant", "good")], "bad"
HUMAN = {"from": "human", "value": "what?"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "what?", "chosen": "good", "rejected": "bad"}, (*PLAIN, ())),
        ({"question": "what?", "chosen": "good", "rejected": "bad", "image": "a.png"}, (*PICTURED, ("a.png",))),
        ({"question": "what?", "chosen": "good", "rejected": "bad", "image": {"bytes": "x"}, "image_path": "a.png"},
         (*PICTURED, ("a.png",))),
        ({"prompt": "what?", "chosen": "good", "rejected": "bad"}, (*PLAIN, ())),
        ({"prompt": USER, "chosen": [answer("good")], "rejected": [answer("bad")]}, (*PLAIN, ())),
        ({"prompt": USER, "chosen": answer("good"), "rejected": "bad"}, (*PLAIN, ())),
        ({"chosen": [*USER, answer("good")], "rejected": [*USER, answer("bad")]}, (*PLAIN, ())),
        ({"prompt": "what?", "chosen": [*USER, answer("good")], "rejected": [*USER, answer("bad")]}, (*PLAIN, ())),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}],
          "chosen": [answer("good")], "rejected": [answer("bad")], "images": ["a.png"]}, (*PICTURED, ("a.png",))),
        ({"prompt": USER, "chosen": [answer("good")], "rejected": [answer("bad")], "images": ["a.png"]},
         (*PICTURED, ("a.png",))),
        ({"chosen": "The sky is blue.", "rejected": "The sky is black."},
         ([("user", "The sky is"), ("assistant", "blue.")], "black.", ())),
        ({"chosen": "\n\nHuman: what?\n\nAssistant: good", "rejected": "\n\nHuman: what?\n\nAssistant: bad"},
         (*PLAIN, ())),
        ({"conversations": [HUMAN], "output_1": {"from": "llava", "value": "good"},
          "output_2": {"from": "llava", "value": "bad"}, "preference": 1}, (*PLAIN, ())),
        ({"conversations": [HUMAN], "output_1": "bad", "output_2": "good", "preference": 2}, (*PLAIN, ())),
        ({"conversations": [{"from": "human", "value": "<image>\nwhat?"}], "chosen": {"from": "gpt", "value": "good"},
          "rejected": {"from": "gpt", "value": "bad"}, "image": "a.png"}, (*PICTURED, ("a.png",))),
        ({"messages": USER, "chosen": "good", "rejected": "bad", "system": "S"},
         ([("system", "S"), *PLAIN[0]], "bad", ())),
    ],
)  # fmt: skip
def test_every_form_gives_a_prompt_two_answers_and_images(row, expected):
    assert said(row) == expected


@pytest.mark.parametrize("label", [True, False, 1, 0])
def test_a_single_answer_has_a_label(label):
    row = {"prompt": "what?", "completion": "good", "label": label, "image": "a.png"}
    assert said(row, single=True) == (PICTURED[0], bool(label), ("a.png",))
    row = {"prompt": USER, "completion": [answer("good")], "label": label}
    assert said(row, single=True) == (PLAIN[0], bool(label), ())


def test_only_the_last_answer_is_learnt():
    turns = [*USER, answer("first"), {"role": "user", "content": "and?"}]
    found = read_preference({"prompt": turns, "chosen": "good", "rejected": "bad"}, PLACE)
    assert found.talk.messages[1] == Message("assistant", "first", learns=False)
    assert found.talk.messages[3] == Message("assistant", "good")


def test_keys_that_nobody_reads_are_counted():
    unread = UnreadKeys()
    read_preference({"question": "q", "chosen": "a", "rejected": "b", "ds_name": "x", "idx": 3}, PLACE, unread=unread)
    assert unread.counts == {"ds_name": 1, "idx": 1}


TWO = {"question": "what?", "chosen": "good", "rejected": "bad"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**TWO, "rejected": " good "}, '/3: "chosen" and "rejected" are the same text; there is nothing to prefer'),
        ({**TWO, "chosen": "  "}, "/3/chosen: the answer is empty"),
        ({**TWO, "rejected": ""}, "/3/rejected: the answer is empty"),
        ({**TWO, "rejected": None}, '/3: "rejected" is missing; expected a prompt, chosen and rejected'),
        ({**TWO, "rejected": "<image>"}, '/3/rejected: "<image>" stands in the answer; images belong to the prompt'),
        ({**TWO, "rejected": 7}, "/3/rejected: a number; expected a list of messages that is not empty"),
        ({**TWO, "prompt": "what?"}, '/3: both "prompt" and "question" are there; give one of them'),
        ({"chosen": "good", "rejected": "bad"},
         '/3: no prompt: "chosen" and "rejected" begin differently; add prompt or question'),
        ({"chosen": [answer("good")], "rejected": [answer("bad")]},
         '/3: no prompt; expected one of prompt, question, conversations, messages, or "chosen" as messages'),
        ({"chosen": [*USER, answer("good")], "rejected": [{"role": "user", "content": "why?"}, answer("bad")]},
         '/3: "chosen" and "rejected" answer different prompts (message 0 differs)'),
        ({**TWO, "chosen": [*USER]}, '/3/chosen: ends with a message of role "user"; expected the assistant\'s answer'),
        ({**TWO, "chosen": [answer("a"), answer("b")]},
         "/3/chosen: holds more than one answer, and not the prompt of the row in front of it"),
        ({"conversations": [HUMAN], "output_1": "a", "output_2": "b", "preference": 3},
         "/3/preference: 3; expected 1 or 2, the output that is preferred"),
        ({"conversations": [HUMAN], "output_1": "a", "preference": 1},
         '/3: "output_2" is missing; expected output_1, output_2, preference'),
        ({"prompt": "q", "completion": "a", "label": True},
         '/3: "chosen" is missing; expected a prompt, chosen and rejected; a row with completion and label is for '
         '"loss_type": "kto"'),
        ({**TWO, "image": 5}, "/3/image: a number; expected the path of an image"),
        ({**TWO, "question": "<image>\nwhat?"},
         '/3: "<image>" in the text, but the row has no image in "image" or "images". Correct the row, or set '
         '"mark_without_images" to "text" if the mark is nothing but text'),
        ([TWO], "/3: a list; expected an object with a prompt and answers"),
    ],
)  # fmt: skip
def test_a_bad_pair_is_told_with_its_place(row, message):
    with pytest.raises(DataError) as error:
        read_preference(row, PLACE)
    assert str(error.value) == f"rows.json: {message}"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "completion": "a"},
         '/3: "label" is missing; "loss_type": "kto" takes prompt, completion and label'),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "/3/label: 'yes'; expected true or false"),
        (TWO, '/3: "completion" is missing; "loss_type": "kto" takes prompt, completion and label (the row has a pair: '
              "take sigmoid, hinge, ipo, simpo or orpo)"),
        ({"completion": "a", "label": True},
         "/3: no prompt; expected one of prompt, question, conversations, messages"),
    ],
)  # fmt: skip
def test_a_bad_single_answer_is_told_with_its_place(row, message):
    with pytest.raises(DataError) as error:
        read_preference(row, PLACE, single=True)
    assert str(error.value) == f"rows.json: {message}"


TALK = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}, {"from": "human", "value": "c?"}]


@pytest.mark.parametrize(
    "row",
    [
        TWO,
        {"conversations": TALK, "chosen": {"from": "gpt", "value": "x"}, "rejected": {"from": "gpt", "value": "y"}},
        {"conversations": TALK, "output_1": "x", "output_2": "y", "preference": 1},
        {"conversations": TALK, "completion": "x", "label": True},
    ],
)
def test_a_row_of_preferences_in_another_training_is_told(row):
    with pytest.raises(DataError, match="an answer that is preferred; such rows are for paddlemix preference_tune"):
        read_row(row, PLACE)
