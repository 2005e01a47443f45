# SPDX-License-Identifier: Apache-2.0
"""One question to a judge behind an OpenAI-compatible address (``/v1/chat/completions``), repeated when it is busy."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paddlemix.utils import addresses
from paddlemix.utils.download import RETRIED
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import Reply, post
from paddlemix.utils.foreign import parse_json
from paddlemix.utils.shown import shown

PATH = "/chat/completions"
LONGEST_PAUSE = 60.0
"""Seconds that a server may ask us to wait before the next attempt."""
OF_ONE_REQUEST = (400, 413, 422)
"""Statuses that blame the request: too long for the model, or refused by a filter."""

Message = Mapping[str, str]


class RequestError(DataError):
    """This one request got no answer; others may. ``refused``: the server blames the request, so that it stays so."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class EndpointError(ConfigError):
    """The endpoint takes no request of this kind: the key, the model's name or the address is wrong."""


@dataclass(frozen=True)
class Endpoint:
    """Where the judge is. ``timeout``: seconds for one answer; ``pause``: seconds before the second attempt.

    ``reasoning``: send ``max_completion_tokens`` and no temperature, as OpenAI's reasoning models want it.
    """

    base_url: str
    model: str
    key: str = field(default="", repr=False)
    timeout: float = 120.0
    attempts: int = 5
    pause: float = 1.0
    reasoning: bool = False

    @property
    def url(self) -> str:
        """The address that requests go to."""
        base = self.base_url.rstrip("/")
        return base if base.endswith(PATH) else base + PATH

    def body(self, messages: Sequence[Message], max_tokens: int, temperature: float) -> dict[str, Any]:
        """What is sent; the same body has the same answer in the cache."""
        found: dict[str, Any] = {"model": self.model, "messages": [dict(one) for one in messages]}
        if self.reasoning:
            return {**found, "max_completion_tokens": max_tokens}
        return {**found, "temperature": temperature, "max_tokens": max_tokens}


@dataclass(frozen=True)
class Judged:
    """What the judge said, which model says that it did, and the tokens that the server counted (-1: not told)."""

    text: str
    model: str = ""
    prompt_tokens: int = -1
    completion_tokens: int = -1


def checked(endpoint: Endpoint, *, allow_http: bool = False) -> Endpoint:
    """The endpoint when its settings can be right. ConfigError names the flag that cannot."""
    if not endpoint.model.strip():
        raise ConfigError("--judge-model is empty; give the name under which the endpoint knows the judge")
    try:
        address = addresses.parse(endpoint.base_url)
    except DataError as error:
        raise ConfigError(f"--base-url {error}") from error
    if "?" in address.target:
        raise ConfigError(f"--base-url {shown(endpoint.base_url)}: expected an address without a query, such as "
                          "https://HOST/v1")  # fmt: skip
    if address.scheme == "http" and not allow_http and not addresses.is_loopback(address.host):
        raise ConfigError(
            f"--base-url {shown(endpoint.base_url)}: http sends the key and all answers in the open; give an https "
            "address, or --allow-http in a network that you trust"
        )
    if not endpoint.key.isascii() or not endpoint.key.isprintable() or " " in endpoint.key:
        raise ConfigError("the key of the judge holds blanks or characters that no key has; set the variable again")
    for name, value in (("attempts", endpoint.attempts), ("timeout", endpoint.timeout)):
        if not (math.isfinite(value) and value >= 1):
            raise ConfigError(f"--{name} {value:g}: expected a number from 1")
    return endpoint


def ask(endpoint: Endpoint, body: Mapping[str, Any], sleep: Callable[[float], object] = time.sleep) -> Judged:
    """The judge's answer to one request, after at most ``endpoint.attempts`` attempts.

    ``sleep`` waits so many seconds; when it returns True (``threading.Event.wait``), the run has ended.
    RequestError when this request has no answer, EndpointError when no request will have one.
    """
    headers = {"Content-Type": "application/json", "User-Agent": "paddlemix", "Accept-Encoding": "identity"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    data = json.dumps(body).encode()
    why = ""
    for attempt in range(endpoint.attempts):
        wait = endpoint.pause * 2**attempt
        try:
            reply = post(endpoint.url, data, headers, endpoint.timeout)
        except DataError as error:
            why = str(error)
        else:
            if reply.status == 200:
                return _judged(reply.body, endpoint)
            why = f"{shown(endpoint.url)}: {_told(reply, endpoint)}"
            if reply.status in OF_ONE_REQUEST:
                raise RequestError(why, refused=True)
            if reply.status not in RETRIED and reply.status < 500:
                raise EndpointError(f"{why}; {_remedy(reply.status)}")
            wait = max(wait, _asked_for(reply))
        if attempt + 1 < endpoint.attempts and sleep(min(wait, LONGEST_PAUSE)) is True:
            break
    raise RequestError(f"{why} ({endpoint.attempts} attempts)")


def _told(reply: Reply, endpoint: Endpoint) -> str:
    """The status and what the server says about it, without the key, which some servers repeat."""
    text = reply.body.decode("utf-8", "replace").strip()
    try:
        value = parse_json(text, "", DataError, halves=True)
    except DataError:
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        text = error["message"]
    if endpoint.key:
        text = text.replace(endpoint.key, "***")
    return f"the server answers {reply.status}" + (f" ({shown(text, 200)})" if text else "")


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "set the key of this endpoint in PADDLEMIX_JUDGE_KEY, or name its variable with --key-env"
    if 300 <= status < 400:
        return "redirects are not followed; give the final address with --base-url"
    return "look at --base-url (it ends with /v1 as a rule) and --judge-model"


def _asked_for(reply: Reply) -> float:
    """Seconds of a Retry-After header; dates are not read."""
    text = reply.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0.0


def _judged(body: bytes, endpoint: Endpoint) -> Judged:
    """The text of the first choice. A refusal has no text, and is an answer that no score is found in."""
    where = shown(endpoint.url)
    try:
        value = parse_json(body.decode("utf-8", "replace"), where, DataError, halves=True)
        message = value["choices"][0]["message"]
        text = message.get("content")
    except (DataError, LookupError, TypeError, AttributeError) as error:
        raise EndpointError(
            f"{where}: the answer is none of a chat completion ({shown(body[:120].decode('utf-8', 'replace'))}); "
            "look at --base-url"
        ) from error
    usage = value.get("usage")
    counts = [usage.get(name) if isinstance(usage, dict) else None for name in ("prompt_tokens", "completion_tokens")]
    model = value.get("model")
    return Judged(
        text if isinstance(text, str) else "",
        model if isinstance(model, str) else "",
        *(count if type(count) is int and count >= 0 else -1 for count in counts),
    )
