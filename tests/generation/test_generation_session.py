# SPDX-License-Identifier: Apache-2.0
"""The chat session: kept cache = fresh session, what is computed again, and what happens at the context's end."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from paddlemix.generation.folder import context_of
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.prefix import Slot, common_prefix, length_of
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession, Turn
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import TextConfig
from paddlemix.text import templates
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.constants import IMAGE_TOKEN_INDEX
from paddlemix.utils.errors import ConfigError, DataError
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

DECODING = Decoding(max_new_tokens=10)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(seed=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(tiny_tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def session(model: Any, tokenizer: Tokenizer) -> ChatSession:
    return new_session(model, tokenizer)


def new_session(model: Any, tokenizer: Tokenizer, **more: Any) -> ChatSession:
    processor = ImageProcessor(model.config.image, model.config.vision)
    template = templates.get(more.pop("template", "vicuna_v1"))
    return ChatSession(Predictor(model, tokenizer, processor, template), **{"decoding": DECODING, **more})


def fresh_like(session: ChatSession, turns: Sequence[Turn]) -> ChatSession:
    """A session with the same history that has computed nothing yet."""
    asked = session.predictor
    unused = Predictor(asked.model, asked.tokenizer, asked.processor, asked.template)
    fresh = ChatSession(unused, decoding=session.decoding, context=session.context)
    fresh.turns = list(turns)
    return fresh


ROUNDS: list[tuple[str, list[int]]] = [
    ("what is shown in this picture?", [0]),
    ("how many things are there?", []),
    ("and in this one?", [1]),
    ("what colour is the square?", []),
]


@pytest.mark.parametrize("template", ["vicuna_v1", "mistral_instruct", "v0_mmtag", "llava_llama_2"])
@pytest.mark.parametrize("random", [False, True])
def test_four_rounds_with_a_second_picture_equal_fresh_sessions(
    model: Any, tokenizer: Tokenizer, template: str, random: bool
) -> None:
    decoding = DECODING.with_changes(temperature=0.7, top_p=0.9, seed=4) if random else DECODING
    session = new_session(model, tokenizer, template=template, decoding=decoding)
    for number, (question, images) in enumerate(ROUNDS):
        fresh = fresh_like(session, session.turns)
        pictures = [tiny_image(kind) for kind in images]
        expected = fresh.answer(question, pictures)
        assert session.answer(question, pictures) == expected
        assert session.stats.answer_ids == fresh.stats.answer_ids
        assert session.stats.prompt_ids == fresh.stats.prompt_ids
        assert fresh.stats.reused_rows == 0
        assert (session.stats.reused_rows > 0) == (number > 0)


def test_a_later_round_reuses_the_whole_earlier_prompt(session: ChatSession) -> None:
    session.answer("what is this?", [tiny_image(0)])
    earlier = session.stats.prompt_rows
    session.answer("and why?")
    # "ASSISTANT:" may end differently before an answer than before a space, so one row of slack.
    assert session.stats.reused_rows >= earlier - 1
    assert session.stats.encoded_pictures == 0


def test_the_same_question_again_is_answered_the_same_from_the_cache(session: ChatSession) -> None:
    first = session.answer("what is this?", [tiny_image(0)])
    session.turns = []
    assert session.answer("what is this?", [tiny_image(0)]) == first
    assert session.stats.reused_rows == session.stats.prompt_rows - 1


def test_an_answer_that_tokenizes_back_to_its_ids_is_not_run_again(session: ChatSession) -> None:
    words = session.predictor.tokenizer.encode(" red blue green", bos=False)
    session.answer("what?", [tiny_image(0)])
    prompt = session.stats.prompt_ids
    # The cache as it would be after a model that said these words.
    session.turns = [Turn("what?", session.turns[0].pictures, "red blue green")]
    made = session._prompt([*session.turns, Turn("why?")])
    units, ids = made.slots, list(made.ids)
    cached = [Slot(token) if token != IMAGE_TOKEN_INDEX else units[ids.index(token)] for token in (*prompt, *words)]
    assert common_prefix(cached, units) == len(cached)


def test_the_features_of_a_picture_are_computed_once_even_after_a_reset(session: ChatSession) -> None:
    session.answer("what?", [tiny_image(0)])
    assert session.stats.encoded_pictures == 1
    session.reset()
    assert session.turns == []
    session.answer("why?", [tiny_image(0), tiny_image(1)])
    assert session.stats.encoded_pictures == 1
    assert session.stats.reused_rows == 0


def test_another_picture_in_the_same_place_is_not_taken_for_the_first(model: Any, tokenizer: Tokenizer) -> None:
    session = new_session(model, tokenizer)
    first = session.answer("what?", [tiny_image(0)])
    session.turns = []
    second = session.answer("what?", [tiny_image(1)])
    assert second == new_session(model, tokenizer).answer("what?", [tiny_image(1)])
    assert second != first


def test_pictures_stand_in_front_of_the_question_each_on_its_line(session: ChatSession) -> None:
    session.answer("why?", [tiny_image(0), tiny_image(1)])
    assert "USER: <image>\n<image>\nwhy? ASSISTANT:" in session.stats.prompt


def test_written_picture_places_stay_where_they_are(session: ChatSession) -> None:
    session.answer("is <image> above <image>?", [tiny_image(0), tiny_image(1)])
    assert "USER: is <image> above <image>? ASSISTANT:" in session.stats.prompt


def test_picture_places_are_wrapped_where_the_model_was_trained_so(tokenizer: Tokenizer) -> None:
    session = new_session(tiny_model(use_im_start_end=True), tokenizer)
    session.answer("why?", [tiny_image(0)])
    assert "USER: <im_start><image><im_end>\nwhy? ASSISTANT:" in session.stats.prompt


def test_text_alone_works_with_and_without_a_tower(tokenizer: Tokenizer, session: ChatSession) -> None:
    assert session.answer("why?") == session.turns[0].answer
    blind = tiny_model(vision=None, image=None)
    alone = ChatSession(Predictor(blind, tokenizer, None, templates.get("vicuna_v1")), decoding=DECODING)
    alone.answer("why?")
    assert len(alone.stats.answer_ids) == 10
    with pytest.raises(ConfigError, match="no vision tower"):
        alone.answer("what?", [tiny_image(0)])


def test_the_streamed_pieces_are_the_answer(model: Any, tokenizer: Tokenizer) -> None:
    session = new_session(model, tokenizer)
    pieces = list(session.ask("why?"))
    assert len(pieces) > 1
    assert all(pieces)
    assert "".join(pieces).strip() == session.turns[0].answer
    assert tokenizer.decode(session.stats.answer_ids).strip() == session.turns[0].answer


def test_the_answer_ends_at_the_ending_id(model: Any, tokenizer: Tokenizer) -> None:
    session = new_session(model, tokenizer)
    session.answer("why?")
    ids = session.stats.answer_ids
    ended = new_session(model, tokenizer, decoding=DECODING.with_changes(eos_ids=(ids[3],)))
    ended.answer("why?")
    assert ended.stats.answer_ids == ids[: ids.index(ids[3]) + 1]


def test_closing_the_stream_keeps_what_was_said_and_the_next_round_equals_a_fresh_one(session: ChatSession) -> None:
    pieces = session.ask("what is this?", [tiny_image(0)])
    said = next(pieces) + next(pieces)
    pieces.close()
    assert session.turns[-1].answer == said.strip()
    fresh = fresh_like(session, session.turns)
    assert session.answer("why?") == fresh.answer("why?")
    assert session.stats.reused_rows > 0


def test_an_interrupt_inside_a_step_leaves_a_session_that_equals_a_fresh_one(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = type(session.predictor.model.llama.layers[1].mlp).forward
    calls = {"left": 6}

    def interrupted(self: Any, x: Any) -> Any:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt
        return whole(self, x)

    with monkeypatch.context() as patch:
        patch.setattr(type(session.predictor.model.llama.layers[1].mlp), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.answer("what is this?", [tiny_image(0)])
    assert session.turns[-1].answer
    fresh = fresh_like(session, session.turns)
    assert session.answer("and why is it so?") == fresh.answer("and why is it so?")


def test_beam_search_in_a_session_equals_a_fresh_one(model: Any, tokenizer: Tokenizer) -> None:
    session = new_session(model, tokenizer, decoding=DECODING.with_changes(num_beams=3))
    for question, images in ROUNDS[:3]:
        fresh = fresh_like(session, session.turns)
        pictures = [tiny_image(kind) for kind in images]
        assert session.answer(question, pictures) == fresh.answer(question, pictures)
        # The beams have no more in common than the prompt.
        assert session._cache.keys_values.length == length_of(session._cache.slots) == session.stats.prompt_rows
    assert session.stats.reused_rows > 0


def test_a_hundred_turns_over_the_context_drop_the_oldest_and_say_so(model: Any, tokenizer: Tokenizer) -> None:
    notes: list[str] = []
    session = new_session(
        model, tokenizer, context=250, note=notes.append, decoding=DECODING.with_changes(max_new_tokens=2)
    )
    session.answer("what is this?", [tiny_image(0)])
    for number in range(100):
        session.answer(f"and number {number}?")
        assert session.stats.prompt_rows + 2 <= 250
    assert notes
    assert notes[0].startswith("the conversation no longer fits the context of 250 tokens: dropped the oldest 1 turn")
    assert len(session.turns) < 100
    assert session.turns[-1].text == "and number 99?"
    # The image outlives the turn that brought it.
    assert session.stats.prompt.count("<image>") == 1


def test_dropping_turns_still_equals_a_fresh_session(model: Any, tokenizer: Tokenizer) -> None:
    session = new_session(model, tokenizer, context=300, note=lambda text: None)
    session.answer("what is this?", [tiny_image(0)])
    for number in range(12):
        fresh = fresh_like(session, session.turns)
        fresh.note = lambda text: None
        assert session.answer(f"and {number}?") == fresh.answer(f"and {number}?")


def test_pictures_are_dropped_when_nothing_else_is_left(model: Any, tokenizer: Tokenizer) -> None:
    notes: list[str] = []
    session = new_session(model, tokenizer, note=notes.append)
    for kind in range(4):
        session.answer("what is this?", [tiny_image(kind)])
    alone = len(new_session(model, tokenizer)._prompt([Turn("why?")]).ids)
    session.context = alone + DECODING.max_new_tokens + 2 * 6
    session.answer("why?")
    assert notes == [
        f"the conversation no longer fits the context of {session.context} tokens: "
        f"dropped the oldest 4 turn(s) and {4 - session.stats.prompt.count('<image>')} image(s)"
    ]
    assert 1 <= session.stats.prompt.count("<image>") < 4


def test_an_answer_that_the_context_cuts_off_comes_with_a_note(model: Any, tokenizer: Tokenizer) -> None:
    notes: list[str] = []
    session = new_session(model, tokenizer, note=notes.append)
    rows = session._prompt([Turn("why?")]).length
    session.context = rows + 4
    session.answer("why?")
    assert len(session.stats.answer_ids) == 4
    assert notes == [f"the answer was cut after 4 tokens: the context of {rows + 4} is full"]
    ending = session.stats.answer_ids[-1]
    session.reset()
    list(session.ask("why?", eos_ids=(ending,)))
    assert len(notes) == 1


@pytest.mark.parametrize("beams", [1, 2])
def test_a_short_question_is_answered_in_full_beside_one_that_fills_the_context(
    model: Any, tokenizer: Tokenizer, beams: int
) -> None:
    notes: list[str] = []
    session = new_session(model, tokenizer, note=notes.append, decoding=DECODING.with_changes(num_beams=beams))
    long = "why " * 40
    session.context = session._prompt([Turn(long)]).length + 3
    alone = []
    for question in ("why?", long):
        alone.append(session.answer(question))
        session.reset()
    notes.clear()

    assert session.batch(["why?", long]) == alone
    assert notes == [f"answer 1 was cut after 3 tokens: the context of {session.context} is full"]


def test_a_small_context_keeps_its_conversation_when_long_answers_are_allowed(model: Any, tokenizer: Tokenizer) -> None:
    notes: list[str] = []
    session = new_session(model, tokenizer, context=400, note=notes.append)
    session.answer("what is this?", [tiny_image(0)])
    pieces = session.ask("and why?", max_new_tokens=512)
    next(pieces)
    pieces.close()
    assert len(session.turns) == 2
    assert notes == []


def test_a_question_longer_than_the_context_is_an_error_and_changes_nothing(session: ChatSession) -> None:
    session.answer("why?")
    turns = session.turns
    with pytest.raises(DataError, match="of the 512 positions of the model's context and leaves none for an answer"):
        session.answer("why " * 600)
    assert session.turns == turns


def test_a_question_with_half_of_a_surrogate_pair_is_an_error_and_changes_nothing(session: ChatSession) -> None:
    session.answer("why?")
    turns = session.turns
    for ask in (session.answer, lambda text: session.batch(["why?", text])):
        with pytest.raises(DataError, match=r'half of a surrogate pair, .*"[^"]*USER: why \\ud83d\? ASSIS'):
            ask("why \ud83d?")
    assert session.turns == turns
    question = "how many things are there?"
    assert session.answer(question) == fresh_like(session, turns).answer(question)


def test_places_and_pictures_that_differ_in_number_are_an_error(session: ChatSession) -> None:
    with pytest.raises(DataError, match='holds 2 "<image>" and comes with 1 images'):
        session.answer("<image> or <image>?", [tiny_image(0)])
    with pytest.raises(DataError, match='holds 1 "<image>" and comes with 0 images'):
        session.answer("<image>?")


def test_a_picture_place_that_the_model_writes_does_not_stay_in_the_history(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.predictor.tokenizer, "decode", lambda *args, **kwargs: "a <image> b")
    monkeypatch.setattr("paddlemix.generation.answers.TextStream", lambda tokenizer, stops: FakeStream("a <image> b"))
    session.answer("why?")
    assert session.turns[0].answer == "a  b"


class FakeStream:
    """A text stream that says the same whatever the ids are."""

    stopped = False

    def __init__(self, text: str) -> None:
        self.text = text

    def put(self, token: int) -> str:
        return ""

    def end(self) -> str:
        return self.text


def test_the_system_prompt_can_be_replaced(model: Any, tokenizer: Tokenizer) -> None:
    session = new_session(model, tokenizer, system="A red square.")
    session.answer("why?")
    assert session.stats.prompt == "A red square. USER: why? ASSISTANT:"
    with pytest.raises(ConfigError, match="images belong to a question"):
        new_session(model, tokenizer, system="<image>")


def test_the_context_is_what_positions_scaling_and_window_allow() -> None:
    text = TextConfig(10, 8, 8, 1, 1, 1, max_position_embeddings=4096)
    assert context_of(text) == 4096
    assert context_of(replace(text, sliding_window=1024)) == 1024
    for scaling, expected in (
        ({"type": "linear", "factor": 4.0}, 16384),
        ({"rope_type": "dynamic", "factor": 2.0}, 8192),
        ({"rope_type": "llama3", "factor": 8.0}, 4096),
    ):
        assert context_of(TextConfig(10, 8, 8, 1, 1, 1, max_position_embeddings=4096, rope_scaling=scaling)) == expected
