# SPDX-License-Identifier: Apache-2.0
"""The body of POST /v1/chat/completions: what is read, what is refused, and what is left alone.

Fields that nobody here knows are ignored, because evaluation harnesses send those of other servers (vLLM's
``chat_template_kwargs``, ``media_io_kwargs``). Fields that would change the answer and cannot be had are refused.
"""

from dataclasses import dataclass
from typing import Any

from paddlemix.datasets.rows import read_messages
from paddlemix.generation.sampling import MAX_LOGPROBS, MAX_PENALTY, Decoding
from paddlemix.imaging.views import ORDERS, Views
from paddlemix.serve.bodies import Fields
from paddlemix.serve.faults import refused
from paddlemix.serve.limits import Limits
from paddlemix.serve.pictures import Place, check_address
from paddlemix.text.messages import Message
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.foreign import JsonValue
from paddlemix.utils.shown import shown

LONGEST = (1 << 31) - 1
"""``max_new_tokens`` of a request that names none: the context ends the answer."""
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
IMPOSSIBLE = (
    "tools", "functions", "audio", "prediction", "web_search_options", "guided_json", "guided_regex", "guided_choice",
    "guided_grammar", "structured_outputs", "prompt_logprobs", "use_beam_search", "grammar", "stop_token_ids",
    "min_tokens", "ignore_eos", "bad_words", "include_stop_str_in_output", "chat_template", "echo",
)  # fmt: skip
DETAILS = ("auto", "low", "high")


@dataclass(frozen=True)
class ChatRequest:
    """A checked request; its images are still addresses."""

    model: str | None
    messages: tuple[Message, ...]
    places: tuple[Place, ...]
    decoding: Decoding
    choices: int = 1
    stream: bool = False
    include_usage: bool = False


def read_chat(body: dict[str, Any], limits: Limits) -> ChatRequest:
    """The request of a body; RequestError names the field that cannot be."""
    fields = Fields(body)
    _refuse_impossible(fields)
    stream, options = fields.flag("stream"), fields.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise fields.wrong("stream_options", "an object")
    if options is not None and not stream:
        raise refused("stream_options is for streams; set stream to true, or leave it out", "stream_options")
    messages, places = _messages(fields, limits)
    return ChatRequest(
        fields.text("model"),
        messages,
        places,
        decoding_of(fields, limits),
        fields.whole("n", 1, limits.choices, 1) or 1,
        stream,
        Fields(options or {}, "stream_options.").flag("include_usage"),
    )


def decoding_of(fields: Fields, limits: Limits) -> Decoding:
    """How the answer is drawn. OpenAI's defaults: temperature 1, top_p 1, as many tokens as there is room."""
    name = "max_completion_tokens" if fields.get("max_completion_tokens") is not None else "max_tokens"
    logprobs, top = fields.flag("logprobs"), fields.whole("top_logprobs", 0, MAX_LOGPROBS)
    if top and not logprobs:
        raise refused("top_logprobs needs logprobs: true", "top_logprobs")
    try:
        return Decoding(
            max_new_tokens=min(fields.whole(name, 1, default=LONGEST) or LONGEST, LONGEST),
            temperature=fields.number("temperature", 0, 2, 1.0),
            top_p=fields.number("top_p", 0, 1, 1.0, above=True),
            top_k=max(0, fields.whole("top_k", -1, LONGEST, 0) or 0),
            min_p=fields.number("min_p", 0, 0.999999, 0.0),
            repetition_penalty=fields.number("repetition_penalty", 0, 100, 1.0, above=True),
            frequency_penalty=fields.number("frequency_penalty", -MAX_PENALTY, MAX_PENALTY, 0.0),
            presence_penalty=fields.number("presence_penalty", -MAX_PENALTY, MAX_PENALTY, 0.0),
            seed=_seed(fields),
            stop=fields.texts("stop", limits.stops, limits.stop_chars),
            logit_bias=_bias(fields),
            logprobs=(top or 0) if logprobs else None,
        )
    except ConfigError as error:
        raise refused(str(error)) from None


def _seed(fields: Fields) -> int | None:
    """OpenAI's seeds are signed; a negative one is taken modulo 2^64."""
    seed = fields.whole("seed", -(1 << 63), (1 << 64) - 1)
    return None if seed is None else seed % (1 << 64)


def _bias(fields: Fields) -> tuple[tuple[int, float], ...]:
    value = fields.get("logit_bias")
    if value is None:
        return ()
    if not isinstance(value, dict) or len(value) > 1024:
        raise fields.wrong("logit_bias", "an object of at most 1024 ids with numbers from -100 to 100")
    each = Fields(value, "logit_bias.")
    if not all(key.isascii() and key.isdigit() and len(key) < 10 for key in value):
        raise refused("logit_bias holds a name that is no token id", "logit_bias")
    return tuple((int(key), each.number(key, -100, 100, 0.0)) for key in value)


def _refuse_impossible(fields: Fields) -> None:
    for name in IMPOSSIBLE:
        if fields.get(name) not in (None, False, [], {}, "", 0):
            raise refused(f"{name} is not supported by this server; leave it out", name)
    form = fields.get("response_format")
    kind = form.get("type") if isinstance(form, dict) else form
    if kind not in (None, "text"):
        raise refused(f'response_format {shown(kind)} is not supported; leave it out or send {{"type": "text"}}',
                      "response_format")  # fmt: skip
    kinds = fields.get("modalities")
    if kinds not in (None, ["text"]):
        raise refused('modalities: this server answers in text only; leave it out or send ["text"]', "modalities")
    if fields.get("tool_choice") not in (None, "none", "auto"):
        raise refused("tool_choice is not supported by this server; leave it out", "tool_choice")


def _messages(fields: Fields, limits: Limits) -> tuple[tuple[Message, ...], tuple[Place, ...]]:
    written = fields.get("messages")
    if not isinstance(written, list) or not written:
        raise refused("messages has to be a list with at least one message", "messages")
    if len(written) > limits.messages:
        raise refused(f"{len(written)} messages; this server takes {limits.messages}", "messages")
    reader = _Reader(limits)
    turns = [reader.turn(message, f"messages[{index}]") for index, message in enumerate(written)]
    if turns[-1]["role"] != "user":
        raise refused("the last message has to be the user's", f"messages[{len(turns) - 1}].role")
    try:
        conversation = read_messages(turns)
    except DataError as error:
        raise refused(str(error), "messages") from None
    return conversation.messages, tuple(reader.places[int(number)] for number in conversation.images)


class _Reader:
    """Messages in the form that ``datasets.rows`` reads, with the number of its place for each image."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.places: list[Place] = []
        self._chars = self._images = self._parts = 0

    def turn(self, message: JsonValue, at: str) -> dict[str, Any]:
        if not isinstance(message, dict):
            raise refused(f"{at} has to be an object", at)
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            raise refused(f"{at}.role is {shown(role)}; expected one of {', '.join(ROLES)}", f"{at}.role")
        if message.get("tool_calls") or message.get("function_call"):
            raise refused("calls of tools are not supported by this server", at)
        content = message.get("content")
        if isinstance(content, list) and content:
            self._parts += len(content)
            if self._parts > self.limits.parts:
                raise refused(f"more than {self.limits.parts} content parts in one request", f"{at}.content")
            parts = [self._part(part, f"{at}.content[{index}]", ROLES[role]) for index, part in enumerate(content)]
            return {"role": ROLES[role], "content": parts}
        return {"role": ROLES[role], "content": self._text(content, at, "content")}

    def _text(self, value: JsonValue, at: str, name: str) -> str:
        text = Fields({}, f"{at}.").checked_text(value, name)
        self._chars += len(text)
        if self._chars > self.limits.text_chars:
            raise refused(f"more than {self.limits.text_chars} characters of text in one request", f"{at}.{name}")
        return text

    def _part(self, part: JsonValue, at: str, role: str) -> dict[str, Any]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            return {"type": "text", "text": self._text(part.get("text"), at, "text")}
        if kind not in ("image_url", "image_views"):
            known = "text, image_url and image_views"
            raise refused(f"{at}: a part of type {shown(kind)} is not supported; known are {known}", at)
        if role != "user":
            raise refused(f"{at}: images belong to messages of the user", at)
        value, at = part.get(kind), f"{at}.{kind}"
        self.places.append(self._url(value, at) if kind == "image_url" else self._views(value, at))
        return {"type": "image_url", "image_url": {"url": str(len(self.places) - 1)}}

    def _url(self, value: JsonValue, at: str) -> Place:
        fields = Fields(value if isinstance(value, dict) else {"url": value}, f"{at}.")
        if fields.get("detail") not in (None, *DETAILS):
            raise fields.wrong("detail", "auto, low or high")
        return Place((self._source(fields.get("url"), at),), at)

    def _views(self, value: JsonValue, at: str) -> Place:
        """Several pictures of one object, or a sheet of them, at one image place."""
        if not isinstance(value, dict):
            raise refused(f'{at} has to be an object: {{"urls": [...], "grid": 1, "repeat": 1}}', at)
        fields, urls = Fields(value, f"{at}."), value.get("urls")
        if not isinstance(urls, list) or not urls:
            raise refused(f"{at}.urls has to be a list with at least one image", f"{at}.urls")
        grid, repeat = fields.whole("grid", 1, 8, 1) or 1, fields.whole("repeat", 1, 16, 1) or 1
        order = fields.get("order")
        if order not in (None, *ORDERS):
            raise fields.wrong("order", " or ".join(ORDERS))
        views = Views(grid, repeat, order)
        self._count(views.count(len(urls)) - len(urls), at)
        return Place(tuple(self._source(url, f"{at}.urls[{index}]") for index, url in enumerate(urls)), at, views)

    def _source(self, url: JsonValue, at: str) -> str:
        self._count(1, at)
        if not isinstance(url, str) or not url:
            raise refused(f'{at}: an image is given as "data:image/...;base64,..."', at)
        check_address(url, at, self.limits)
        return url

    def _count(self, images: int, at: str) -> None:
        self._images += images
        if self._images > self.limits.images:
            raise refused(f"more than {self.limits.images} images in one request; this server takes no more", at)
