# SPDX-License-Identifier: Apache-2.0
"""Nothing of a row is lost in silence: unread keys are named, and what a row says of itself is obeyed."""

import json
import random
from pathlib import Path

import pytest

from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.multiview import views_of
from paddlemix.datasets.records import LongNumber, Place, UnreadKeys
from paddlemix.datasets.rows import IMAGE_KEYS, MarkRules, read_messages, read_row
from paddlemix.datasets.sample import BadSamples, Sample
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.text.messages import Message
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_TOKEN
from paddlemix.utils.errors import DataError

ASK, ANSWER = "what is this?", "a red square."
TURNS = {
    "llava": lambda ask: {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": ANSWER}]},
    "pairs": lambda ask: {"conversations": [[ask, ANSWER]]},
    "openai": lambda ask: {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": ANSWER}]},
}
MARKED = f"<image>\n{ASK}"


@pytest.fixture(params=TURNS)
def talk(request):
    """Makes the turns of a row in one of the forms."""
    return TURNS[request.param]


@pytest.mark.parametrize(("key", "near"), [
    ("img", "image"), ("imgs", "images"), ("image_path", "image"), ("Image", "image"), ("IMAGES", "images"),
    ("image_file", "image"), ("image_url", "image"), ("System", "system"),
])  # fmt: skip
def test_keys_that_nothing_reads_are_counted_with_the_nearest_that_is_read(rows, talk, key, near):
    unread = UnreadKeys()
    path = rows(*[{**talk("why?"), key: "a.png", "id": index} for index in range(3)], {**talk("why?"), "source": "x"})
    read(DatasetEntry((path[0].where.partition(": /")[0],)), None, unread)
    note = unread.note()
    assert note.startswith(f'keys of rows that are not read: "{key}" (3 times, did you mean "{near}"?)')
    assert note.endswith('"source" (1 times)')


def test_unread_keys_of_turns_and_parts_are_counted_too(tmp_path: Path):
    part = {"type": "image_url", "image_url": {"url": "a.png"}, "detail": "low"}
    openai = {"messages": [{"role": "user", "content": [part], "name": "eve"}, {"role": "assistant", "content": "x"}]}
    llava = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "note": "n"}]}
    (tmp_path / "a.json").write_text(json.dumps([openai, llava, {**llava, "unused": None, "empty": []}]))
    unread = UnreadKeys()
    read(DatasetEntry((str(tmp_path / "a.json"),)), None, unread)
    assert dict(unread.counts) == {"detail": 1, "name": 1, "note": 2}


def test_a_mark_without_a_picture_is_a_bad_row_that_names_the_key_and_the_setting(rows, talk):
    cases = [({"img": "a.png"}, '"img" is not read, did you mean "image"'), ({}, 'no image in "image" or "images"')]
    cases += [({key: empty}, f'"{key}" is (null|empty)') for key in IMAGE_KEYS for empty in (None, "", [])]
    for more, words in cases:
        with pytest.raises(DataError, match=rf'train\.json: /0: "<image>" in the text.*{words}') as caught:
            rows({**talk(MARKED), **more})
        assert '"mark_without_images" to "text"' in str(caught.value)
        (sample,) = rows({**talk(MARKED), **more}, rules=MarkRules(mark_without_images="text"))
        assert sample.images == ()


def test_pictures_without_a_mark_are_a_bad_row_or_get_it_in_front(rows, talk, encoder):
    for images, marks in (("a.png", "<image>\n"), (["a.png", "b.png"], "<image>\n<image>\n")):
        row = {**talk(ASK), "images": images}
        with pytest.raises(DataError, match='0 "<image>" in the text.*"images_without_mark" to "front"'):
            rows(row)
        (sample,) = rows(row, rules=MarkRules(images_without_mark="front"))
        assert sample.messages[0] == Message("user", marks + ASK)
        (written,) = rows({**talk(marks + ASK), "images": images})
        own = encoder()
        assert own.render(sample).ids == own.render(written).ids
    (system,) = rows({**talk(ASK), "images": "a.png", "system": "s"}, rules=MarkRules(images_without_mark="front"))
    assert [message.text for message in system.messages] == ["s", f"<image>\n{ASK}", ANSWER]


def test_an_image_may_be_written_as_a_file_address(talk):
    beside = read_row({**talk(MARKED), "image": "file:///data/a.png"}, Place("f.json", "/0"))
    part = {"type": "image_url", "image_url": {"url": "file:///data/a.png"}}
    inside = read_messages([{"role": "user", "content": [part, {"type": "text", "text": ASK}]}])
    assert beside.images == inside.images == ("/data/a.png",)
    assert inside.messages == (Message("user", MARKED),)


@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_the_system_text_of_a_row_is_obeyed(rows, talk, encoder, key):
    one, other, plain = rows({**talk(ASK), key: "You are X."}, {**talk(ASK), key: None}, {**talk(ASK), key: ""})
    own = encoder()
    assert own.render(one).text.startswith("You are X. USER: what")
    assert own.render(other).text == own.render(plain).text
    assert own.render(other).text.startswith("A chat between")
    assert encoder(template="plain").render(one).text == f"{ANSWER}\n"  # captions alone: no question and no system text
    for more, words in (({key: 3}, f"/0/{key}: a number"), ({"system": "a", "system_prompt": "b"}, "both")):
        with pytest.raises(DataError, match=words):
            rows({**talk(ASK), **more})
    turns = {"messages": [{"role": "system", "content": "a"}, *TURNS["openai"](ASK)["messages"]], key: "b"}
    with pytest.raises(DataError, match="stands here and in the first turn"):
        rows(turns)


def weighted(form: str, *weights: object) -> dict[str, object]:
    key, who, text = ("messages", "role", "content") if form == "openai" else ("conversations", "from", "value")
    asks, says = ("user", "assistant") if form == "openai" else ("human", "gpt")
    turns = []
    for index, weight in enumerate(weights):
        turns += [{who: asks, text: f"question {index}"}, {who: says, text: f"answer {index}", "weight": weight}]
    return {key: turns}


@pytest.mark.parametrize("form", ["openai", "llava"])
@pytest.mark.parametrize("template", [None, "chat_template.json"])
@pytest.mark.parametrize("name", ["v1", "llava_llama_2", "chatml_direct", "v0", "gemma_instruct"])
def test_answers_of_weight_zero_are_shown_and_not_learnt(rows, encoder, tmp_path, form, template, name):
    entry = {}
    if template:
        (tmp_path / template).write_text(json.dumps({"conversation": ["Q: {{user}}\n", "A: {{bot}}</s>"]}))
        entry = {"chat_template": str(tmp_path / template)}
    made, plain = rows(weighted(form, 0, 1, 0.0, None), weighted(form, 1, 1, 1, 1), **entry)
    own = encoder(template=name)
    found, whole = own(made), own(plain)
    assert found.ids.tolist() == whole.ids.tolist()
    learnt = own.tokenizer.decode([token for token in found.labels.tolist() if token != IGNORE_INDEX])
    assert ["answer 0" in learnt, "answer 1" in learnt, "answer 2" in learnt, "answer 3" in learnt] == [0, 1, 0, 1]
    kept = found.labels != IGNORE_INDEX
    assert (found.labels[kept] == whole.labels[kept]).all()
    assert ChatDataset([made], own).fingerprint != ChatDataset([plain], own).fingerprint


def test_a_row_that_learns_nothing_and_a_weight_that_is_none_are_bad(rows, encoder):
    with pytest.raises(DataError, match="no answer to learn; .* has weight 0"):
        ChatDataset(rows(weighted("openai", 0, 0)), encoder())
    for weight in (2, -1, 0.5, True, "0", [0]):
        with pytest.raises(DataError, match="/0/messages/1/weight: .*expected 0") as caught:
            rows(weighted("openai", weight))
        assert repr(weight) in str(caught.value)


@pytest.mark.parametrize("form", ["openai", "llava"])
@pytest.mark.parametrize("key", ["loss", "train"])
def test_other_spellings_of_weight_zero_are_obeyed(rows, encoder, form, key):
    def spelt(*values: object) -> dict[str, object]:
        return json.loads(json.dumps(weighted(form, *values)).replace('"weight"', f'"{key}"'))

    made, same = rows(spelt(False, True, 0, None), weighted(form, 0, 1, 0, 1))
    assert encoder()(made).labels.tolist() == encoder()(same).labels.tolist()
    for value in ("false", 0.5, [False], 2):
        with pytest.raises(DataError, match=rf"/1/{key}: .*expected false \(not learnt\) or true"):
            rows(spelt(value))


def test_spellings_that_contradict_each_other_are_a_bad_row(rows):
    row = weighted("openai", 1)
    row["messages"][1]["loss"] = False
    with pytest.raises(DataError, match="/0/messages/1: weight and loss say different things"):
        rows(row)


def test_parts_without_a_path_take_the_images_of_the_row_in_order(rows):
    def asked(*parts: dict[str, object]) -> dict[str, object]:
        talk = [{"role": "user", "content": [*parts, {"type": "text", "text": "Which?"}]}]
        return {"messages": [*talk, {"role": "assistant", "content": "this"}]}

    empty = {"type": "image"}
    parts = (empty, {"type": "text", "text": "or"}, {**empty, "image": None})
    (sample,) = rows({**asked(*parts), "images": ["b.png", "a.png"]})
    assert [Path(image).name for image in sample.images] == ["b.png", "a.png"]
    assert sample.messages[0].text == f"{IMAGE_TOKEN}\nor\n{IMAGE_TOKEN}\nWhich?"
    for row, text in (
        ({**asked(empty, empty), "images": ["a.png"]}, "2 image parts without a path in the messages, but 1 images"),
        ({**asked(empty), "images": ["a.png", "b.png"]}, "1 image parts without a path in the messages, but 2 images"),
        (asked({**empty, "path": "a.png"}, empty), "/0/messages/0/content/1: the image is missing"),
        ({**asked({**empty, "path": "a.png"}, empty), "images": ["b.png"]}, "both in the messages and beside them"),
    ):
        with pytest.raises(DataError, match=text):
            rows(row)


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"image": "a.png", "image": "b.png", "conversations": [["q", "a"]]}', "image"),
        ('{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "value": "b"}]}', "value"),
    ],
)
def test_a_key_that_stands_twice_makes_a_bad_row(tmp_path, ending, text, where):
    good = '{"conversations": [["q", "a"]]}'
    path = tmp_path / f"rows.{ending}"
    path.write_text(f"[{good}, {text}, {good}]" if ending == "json" else f"{good}\n{text}\n{good}\n")
    with pytest.raises(DataError, match=rf'rows\.json.*: the key "{where}" stands twice in one object'):
        read(DatasetEntry((str(path),)))
    bad = BadSamples("skip")
    assert len(read(DatasetEntry((str(path),)), bad)) == 2
    assert bad.skipped == 1


def test_null_beside_the_path_of_a_part_stands_for_nothing(rows):
    part = {"type": "image", "image": None, "path": "a.png"}
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "red"}]}
    assert rows(row)[0].images[0].endswith("a.png")


def test_null_stands_for_nothing_whatever_the_key(rows, talk):
    keys = ["id", "image", "images", "video", "videos", "system", "system_prompt"]
    row = talk(ASK)
    row |= {"messages": None} if "conversations" in row else {"conversations": None}
    (sample,) = rows({**row, **dict.fromkeys(keys)})
    assert [message.text for message in sample.messages] == [ASK, ANSWER]
    (pictured,) = rows({**talk(MARKED), "video": None, "image": "a.png"})
    assert len(pictured.images) == 1
    with pytest.raises(DataError, match='both "messages" and "conversations"'):
        rows({**TURNS["openai"](ASK), **TURNS["pairs"](ASK)})


def put(row: dict[str, object], path: tuple[object, ...], value: object) -> dict[str, object]:
    copy = json.loads(json.dumps(row))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return copy


PATHS = [("id",), ("image",), ("system",), ("conversations", 0, "value"), ("conversations", 1, "weight")]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("lines", [False, True])
def test_numbers_of_any_length_are_a_fault_of_their_row_alone(tmp_path: Path, encoder, path, lines):
    good = {"id": 1, **TURNS["llava"](ASK)}
    text = json.dumps(put(good, path, "LONG")).replace('"LONG"', "-" + "9" * 5000)
    every = [json.dumps(good), text, json.dumps(good)]
    file = tmp_path / ("rows.jsonl" if lines else "rows.json")
    file.write_text("\n".join(every) if lines else f"[{','.join(every)}]")
    pointer = "/".join(map(str, path))
    with pytest.raises(DataError, match=rf"rows\.jsonl?:.*/{pointer}: .*(5000 digits|expected 0)"):
        read(DatasetEntry((str(file),)))
    bad = BadSamples("skip")
    assert len(read(DatasetEntry((str(file),)), bad)) == 2
    assert bad.skipped == 1


def test_a_long_number_that_nothing_reads_stops_nothing(tmp_path: Path):
    row = json.dumps({**TURNS["llava"](ASK), "width": "LONG"}).replace('"LONG"', "9" * 5000)
    (tmp_path / "rows.json").write_text(f"[{row}]")
    unread = UnreadKeys()
    assert len(read(DatasetEntry((str(tmp_path / "rows.json"),)), None, unread)) == 1
    assert unread.counts == {"width": 1}


ODD = [None, True, 0, 1, -1.5, 1e400, float("nan"), "", "<image>", "a", "\0", "\ud800", LongNumber(5000), [], {}]
TEXTS = ["hi", "<image>", "<image>\nq"]
IMAGES = ["a.png", "http://[::1/x", "http://a:b/x", "data:image/png;base64,", "../a", "/a", ["a.png", "b.png"]]


class Rows:
    """Rows that are nearly right: every value is now and then one of another kind."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def odd(self, depth: int = 0) -> object:
        kind = self.random.random()
        if depth > 2 or kind < 0.7:
            return self.random.choice(ODD)
        inner = [self.odd(depth + 1) for _ in range(self.random.randrange(3))]
        return inner if kind < 0.85 else {self.random.choice(["a", "type", "url"]): value for value in inner}

    def one(self, *values: object) -> object:
        return self.odd() if self.random.random() < 0.1 else self.random.choice(values)

    def some(self, **values: object) -> dict[str, object]:
        return {name: make() for name, make in values.items() if self.random.random() < 0.8}

    def text(self) -> object:
        return self.one(*TEXTS)

    def image(self) -> object:
        return self.one(*IMAGES)

    def part(self) -> object:
        kind = self.one("text", "image", "image_url")
        return self.one(self.some(type=lambda: kind, text=self.text, image=self.image, image_url=self.image))

    def turn(self, who: str, said: str, roles: list[str]) -> object:
        content = [self.part() for _ in range(3)] if said == "content" and self.random.random() < 0.5 else self.text()
        turn = {who: self.one(*roles), said: self.one(content)}
        return self.one(turn, {**turn, "weight": self.one(0, 1, 0.5)})

    def row(self) -> object:
        count = self.random.randrange(4)
        llava = [self.turn("from", "value", ["human", "gpt"][index % 2 :]) for index in range(count)]
        chat = [self.turn("role", "content", ["user", "assistant"][index % 2 :]) for index in range(count)]
        pairs = [[self.text(), self.text()] for _ in range(count)]
        name = self.random.choice(["conversations", "messages"])
        talk = {"conversations": lambda: self.one(llava, pairs), "messages": lambda: chat}[name]
        more = self.some(id=self.odd, extra=self.odd) if self.random.random() < 0.5 else {}
        for key, make in (("image", self.image), ("images", self.image), ("system", self.text), ("video", self.odd)):
            if self.random.random() < 0.3:
                more[key] = make()
        return self.one({**more, name: talk()})


def read_one(encoder, row, rules, multiview):
    place = Place("f.json", "/0")
    talk = read_row(row, place, rules)
    images, views = views_of(str(row.get("id")), talk.images, "", 4) if multiview else (talk.images, None)
    sample = Sample(talk.messages, tuple(images), str(row.get("id")), "f.json: /0", views=views)
    encoder.check(sample)
    for image in sample.images:
        encoder.pictures.path(sample, image)


@pytest.mark.parametrize("count", [2000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_no_row_is_odd_enough_for_another_error_than_ours(encoder, count):
    own, made, good = encoder(allow_image_urls=True), Rows(count), 0
    for number in range(count):
        row, rules = made.row(), MarkRules(*[("error", "error"), ("front", "text")][number % 2])
        try:
            read_one(own, row, rules, number % 3 == 0)
            good += 1
        except DataError:
            continue
        except Exception as error:
            raise AssertionError(f"row {number}: {row!r}") from error
    assert good > count // 50, "the rows are to be nearly right"
