# SPDX-License-Identifier: Apache-2.0
"""Clients that others wrote: the openai package, the requests of evaluation harnesses, and a hundred at once."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from paddlemix.serve.access import access_of
from tests.serve.serve_kit import NAME, Running, address, chat, image, running, words

KEY = "a-key-of-enough-letters"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(access_of("127.0.0.1", [KEY], None), slots=16, model_max_position_embeddings=224) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=30) as found:
        yield found


def asked(content: Any, **fields: Any) -> dict[str, Any]:
    return {**chat(content), "max_tokens": 8, **fields}


def test_the_openai_package_lists_asks_and_streams(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == NAME
    content = [words("what is shown?"), {"type": "image_url", "image_url": {"url": address(), "detail": "low"}}]
    answer = client.chat.completions.create(**asked(content, n=2, logprobs=True, top_logprobs=1))
    assert [choice.finish_reason for choice in answer.choices] == ["length"] * 2
    assert answer.choices[0].message.content == answer.choices[1].message.content
    assert len(answer.choices[0].logprobs.content) == 8
    assert answer.usage.completion_tokens == 16
    stream = client.chat.completions.create(**asked(content, stream=True, stream_options={"include_usage": True}))
    chunks = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer.choices[0].message.content
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 8)


def test_the_openai_package_understands_the_errors(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.BadRequestError) as found:
        client.chat.completions.create(**asked("why?", tools=[{"type": "function", "function": {"name": "f"}}]))
    assert found.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked("why?", model="other"))
    stranger = openai.OpenAI(base_url=f"{server.url}/v1", api_key="another", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_an_answer_that_the_client_closes_ends(client: openai.OpenAI, server: Running) -> None:
    with client.chat.completions.create(**asked("why?", max_tokens=400, stream=True)) as stream:
        next(iter(stream))
    for _ in range(200):
        if not server.worker.gate.requests:
            break
        server.engine.call(lambda _: None).result(10)
    assert server.engine.call(lambda _: len(server.engine._jobs)).result(10) == 0


def test_the_request_of_vlmevalkit_is_answered(server: Running) -> None:
    """Its wrapper of the API: a system text at will, many tokens, n, and pictures as JPEG."""
    jpeg = {"type": "image_url", "image_url": {"url": address(form="JPEG"), "detail": "high"}}
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": [jpeg, words("Hint: choose.\nQuestion: red?\nA. yes\nB. no")]},
    ]
    body = {"model": NAME, "messages": messages, "max_tokens": 16384, "n": 1, "temperature": 0.0}
    status, answer, _ = server.ask(body, authorization=f"Bearer {KEY}")
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["total_tokens"] <= server.predictor.context


@pytest.mark.parametrize("tokens", [{"max_tokens": 16}, {"max_completion_tokens": 16}])
def test_the_request_of_lmms_eval_is_answered(client: openai.OpenAI, tokens: dict[str, int]) -> None:
    """Parts of text and PNG in turn, and fields that other servers know."""
    content = [words("first"), image(0), words("and second"), image(1), words("which is red? yes or no")]
    answer = client.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": content}],
        temperature=0,
        response_format={"type": "text"},
        extra_body={"chat_template_kwargs": {"enable_thinking": False}, "media_io_kwargs": {"video": {"fps": 1}}},
        **tokens,
    )
    assert answer.usage.completion_tokens <= 16
    assert answer.choices[0].message.content is not None


def test_a_hundred_streams_at_once_equal_the_answers_alone(server: Running) -> None:
    texts = ["why?", "is it red?", "what is shown in this picture?", "how many things are there, one or two?"]
    bodies = [
        asked([*([image(number % 3)] if number % 2 else []), words(texts[number % 4])], max_tokens=2 + number % 4)
        for number in range(20)
    ]
    alone = [server.ask(body, authorization=f"Bearer {KEY}")[1]["choices"][0]["message"]["content"] for body in bodies]

    async def one(client: openai.AsyncOpenAI, body: dict[str, Any]) -> str:
        stream = await client.chat.completions.create(**body, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_at_once() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=60) as client:
            return await asyncio.gather(*(one(client, bodies[number % 20]) for number in range(100)))

    with ThreadPoolExecutor(1) as pool:
        together = pool.submit(asyncio.run, all_at_once()).result(100)
    assert together == alone * 5
    assert len(set(alone)) > 5
