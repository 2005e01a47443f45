# SPDX-License-Identifier: Apache-2.0
"""The worker's chat completions: the same answers as the chat command, in OpenAI's forms."""

from collections.abc import Iterator
from typing import Any

import pytest

from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession, Turn
from tests.serve.serve_kit import NAME, Running, address, chat, image, running, words
from tests.tiny import tiny_image


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as found:
        yield found


def session_answer(server: Running, rounds: list[tuple[str, list[int]]], **changes: Any) -> str:
    """The last answer of the chat command's session, in the thread that may use the model."""

    def ask(predictor: Any) -> str:
        session = ChatSession(predictor, decoding=Decoding(**{"max_new_tokens": 12, **changes}))
        return [session.answer(text, [tiny_image(kind) for kind in kinds]) for text, kinds in rounds][-1]

    return server.engine.call(ask).result(60)


def text_of(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.parametrize("kinds", [[], [0], [1, 2]])
def test_a_greedy_answer_is_the_chat_commands(server: Running, kinds: list[int]) -> None:
    content = [*(image(kind) for kind in kinds), words("what is shown in this picture?")]
    status, answer, _ = server.ask(chat(content, max_tokens=12))
    assert status == 200, answer
    message = answer["choices"][0]["message"]
    assert message["role"] == "assistant"
    assert message["content"] == session_answer(server, [("what is shown in this picture?", kinds)])
    assert message["content"]
    streamed = server.events(chat(content, max_tokens=12))
    assert streamed[-1] == "[DONE]"
    assert text_of(streamed[:-1]) == message["content"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in streamed[:-1]][-1] == "length"
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    "changes", [{}, {"temperature": 1.0, "seed": 7}, {"temperature": 0.8, "top_p": 0.9, "seed": 3}]
)
def test_a_second_round_is_that_of_the_session_with_its_seed(server: Running, changes: dict[str, Any]) -> None:
    messages = [
        {"role": "user", "content": [image(3), words("what is this?")]},
        {"role": "assistant", "content": "a red square"},
        {"role": "user", "content": "why?"},
    ]
    body = {"temperature": 0, **changes, "messages": messages, "max_tokens": 12}

    def second(predictor: Any) -> str:
        session = ChatSession(predictor, decoding=Decoding(**{"max_new_tokens": 12, **changes}))
        session.turns = [Turn("what is this?", (predictor.picture(tiny_image(3)),), "a red square")]
        return session.answer("why?")

    _, answer, _ = server.ask(body)
    assert answer["choices"][0]["message"]["content"] == server.engine.call(second).result(60)


def test_usage_counts_image_positions_and_the_last_chunk_has_no_choices(server: Running) -> None:
    body = chat([image(4), words("why?")], max_tokens=3)
    _, text_only, _ = server.ask(chat("why?", max_tokens=3))
    _, answer, _ = server.ask(body)
    tokens = server.predictor.model.config.tokens_per_tile
    usage = answer["usage"]
    assert usage["prompt_tokens_details"]["image_tokens"] == tokens
    assert usage["prompt_tokens"] > text_only["usage"]["prompt_tokens"] + tokens - 1
    assert usage["completion_tokens"] == 3
    assert usage["total_tokens"] == usage["prompt_tokens"] + 3
    last, done = server.events({**body, "stream_options": {"include_usage": True}})[-2:]
    assert (last["choices"], done) == ([], "[DONE]")
    assert last["usage"]["completion_tokens"] == 3
    assert "usage" not in server.events(body)[-2]


def test_the_context_bounds_prompt_and_answer() -> None:
    with running(model_max_position_embeddings=96) as server:
        for fields in ({"max_tokens": 16384}, {"max_completion_tokens": 16384, "max_tokens": 1}, {}):
            status, answer, _ = server.ask(chat("why?", **fields))
            assert status == 200
            assert answer["usage"]["total_tokens"] == 96
            assert answer["choices"][0]["finish_reason"] == "length"
        status, answer, _ = server.ask(chat([image(), words("why because " * 20)]))
        assert status == 400
        assert answer["error"]["code"] == "context_length_exceeded"
        assert "96" in answer["error"]["message"]


@pytest.mark.parametrize("as_list", [False, True])
def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(server: Running, as_list: bool) -> None:
    whole = server.ask(chat("why?", max_tokens=40))[1]["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:3]
    body = chat("why?", max_tokens=40, stop=[stop, "never"] if as_list else stop)
    choice = server.ask(body)[1]["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == whole[: whole.index(stop)].strip()
    streamed = server.events(body)[:-1]
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in streamed) == choice["message"]["content"]
    )


def test_choices_of_one_seed_differ_and_come_again(server: Running) -> None:
    body = chat("why?", max_tokens=10, n=3, seed=5) | {"temperature": 1.0}
    first, second = (server.ask(body)[1] for _ in range(2))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert [choice["index"] for choice in first["choices"]] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    assert first["usage"]["completion_tokens"] == 30


def test_logprobs_have_the_form_of_openai(server: Running) -> None:
    body = chat("why?", max_tokens=6, logprobs=True, top_logprobs=2)
    choice = server.ask(body)[1]["choices"][0]
    entries = choice["logprobs"]["content"]
    assert len(entries) == 6
    for entry in entries:
        assert entry["logprob"] <= 0
        assert len(entry["top_logprobs"]) == 2
        assert entry["top_logprobs"][0]["token"] == entry["token"], "greedy takes the likeliest"
    said = b"".join(bytes(entry["bytes"]) for entry in entries).decode("utf-8", "replace").strip()
    assert said == choice["message"]["content"]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in server.events(body)[:-1]]
    assert [entry for part in streamed if part for entry in part["content"]] == entries
    assert server.ask(chat("why?", max_tokens=2))[1]["choices"][0]["logprobs"] is None


def test_penalties_change_the_answer(server: Running) -> None:
    plain = server.ask(chat("why?", max_tokens=30))[1]["choices"][0]["message"]["content"]
    for name in ("frequency_penalty", "presence_penalty"):
        changed = server.ask(chat("why?", max_tokens=30, **{name: 2}))[1]["choices"][0]["message"]["content"]
        assert changed == session_answer(server, [("why?", [])], max_new_tokens=30, **{name: 2})
        assert changed != plain


def test_views_of_one_object_stand_at_one_place(server: Running) -> None:
    views = {"type": "image_views", "image_views": {"urls": [address(kind) for kind in range(4)]}}
    status, answer, _ = server.ask(chat([views, words("what is it?")], max_tokens=8))
    assert status == 200, answer

    def alone(predictor: Any) -> str:
        pictures = [predictor.picture(tiny_image(kind)) for kind in range(4)]
        prompt = predictor.prompt(predictor.question("<image>" * 4 + "\nwhat is it?", 4), pictures)
        return predictor.answer([prompt], Decoding(max_new_tokens=8))[0].text

    assert answer["choices"][0]["message"]["content"] == server.engine.call(alone).result(60)
    tokens = server.predictor.model.config.tokens_per_tile
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 4 * tokens
    sheet = {"urls": [address(0, size=(40, 40))], "grid": 2, "order": "training", "repeat": 2}
    _, answer, _ = server.ask(chat([{"type": "image_views", "image_views": sheet}, words("?")], max_tokens=1))
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 8 * tokens


def test_the_same_picture_and_beginning_are_not_run_again(server: Running) -> None:
    body = chat([image(9), words("is the shape of the things in this picture red or is it blue?")], max_tokens=2)
    server.ask(body)
    encoded = server.number('paddlemix_image_features_total{how="encoded"}')
    reused = server.number("paddlemix_prefix_positions_reused_total")
    _, answer, _ = server.ask(body)
    assert server.number('paddlemix_image_features_total{how="encoded"}') == encoded
    gained = server.number("paddlemix_prefix_positions_reused_total") - reused
    assert gained == answer["usage"]["prompt_tokens_details"]["cached_tokens"] == answer["usage"]["prompt_tokens"] - 1


def test_unknown_fields_are_ignored(server: Running) -> None:
    extra = {"chat_template_kwargs": {"x": 1}, "media_io_kwargs": {}, "user": "me", "store": False, "tools": [],
             "response_format": {"type": "text"}, "top_k": -1, "logit_bias": {}}  # fmt: skip
    status, answer, _ = server.ask(chat("why?", max_tokens=3, **extra))
    assert status == 200, answer
    assert server.ask({**chat("why?", max_tokens=3), "model": None})[0] == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"stop": ["a"] * 10_000}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": "a" * 10_000}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 1 << 70}, "seed"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"447": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"min_tokens": 3}, "min_tokens"),
        ({"stop_token_ids": [5]}, "stop_token_ids"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 300}, "messages"),
        ({"messages": [{"role": "user", "content": "a"}] * 2}, "messages"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "<image> in a text"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": "a" * 300_000}]}, "messages[0].content"),
        ({"messages": [{"role": "system", "content": [image()]}, {"role": "user", "content": "a"}]},
         "messages[0].content[0]"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_name(server: Running, change: dict[str, Any], param: str) -> None:
    status, answer, _ = server.ask(chat("why?", max_tokens=3) | change)
    assert status == 400, answer
    assert answer["error"]["param"] == param
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"


def test_models_are_listed_and_others_are_not_found(server: Running) -> None:
    status, answer, _ = server.ask(None, "/v1/models")
    assert (status, [card["id"] for card in answer["data"]]) == (200, [NAME])
    assert server.ask(None, f"/v1/models/{NAME}")[1]["object"] == "model"
    for found in (server.ask(None, "/v1/models/other"), server.ask({**chat("why?"), "model": "other"})):
        assert (found[0], found[1]["error"]["code"]) == (404, "model_not_found")
        assert NAME in found[1]["error"]["message"]


def test_a_text_where_a_number_belongs_is_shown_as_a_text(server: Running) -> None:
    _, answer, _ = server.ask(chat("why?", max_tokens=3) | {"n": "2"})
    assert answer["error"]["message"].startswith('n is "2"; expected a whole number')


def test_a_count_without_an_upper_end_names_none(server: Running) -> None:
    _, answer, _ = server.ask(chat("why?", max_tokens=0))
    assert answer["error"]["message"].startswith("max_tokens is 0; expected a whole number of at least 1")
