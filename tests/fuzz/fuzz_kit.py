# SPDX-License-Identifier: Apache-2.0
"""Files that are nearly right: a valid one, changed where its grammar allows it, and what a reader may do with it."""

import copy
import json
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from paddlemix.utils.errors import PaddleMixError

QUICK, LONG = 1_000, 100_000
"""Examples of the plain set and of the slow one."""

_COUNTS = [
    pytest.param(QUICK, marks=pytest.mark.timeout(900)),  # seconds on an idle machine
    pytest.param(LONG, marks=[pytest.mark.slow, pytest.mark.timeout(0)]),
]

_RAW = "\ue000"
"""Around what goes into a file as it stands, though JSON has no such thing."""


def _raw(text: str) -> str:
    return f"{_RAW}{text}{_RAW}"


ODD = (
    None, True, False, 0, 1, -1, 2, 7, 10**9, -(10**9), 2**63, 0.5, -0.0, 1e308, 1e30, "", " ", "a", "x" * 5000, "\0",
    "\n\x1b[2J", "1", "1e5", "null", "../x", "/dev/zero", "a/b", "\u0663", "\U0001f600", [], [[]], [None], ["a"],
    [1, 2], [0.5, 0.5, 0.5], [[336, 672]], {}, {"a": 1}, {"": None}, {"content": "</s>"}, {"content": None},
    {"type": "Sequence"},
    _raw("NaN"), _raw("Infinity"), _raw("-Infinity"), _raw("1e400"), _raw("9" * 5000), _raw("-" + "9" * 400),
    _raw('"\\ud800"'), _raw("[" * 60 + "]" * 60), _raw("[" * 3000 + "]" * 3000), _raw("[1,]"), _raw('{"a":1,"a":2}'),
    _raw(""), _raw("tru"), _raw("'a'"), _raw("// x"),
)  # fmt: skip
"""Values that stand where something else belongs."""


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    if isinstance(value, dict):
        for name in list(value)[:60]:
            found += _places(value[name], (*at, name))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            found += _places(value[index], (*at, index))
    return found


def _get(value: Any, at: Sequence[Any]) -> Any:
    for step in at:
        value = value[step]
    return value


def _edit(rng: random.Random, value: Any, more: Sequence[str]) -> Any:
    """One change of a JSON value: another value, a name less, a name more, another order, twice the same."""
    at = rng.choice(_places(value))
    if not at:
        return copy.deepcopy(rng.choice(ODD)) if rng.randrange(10) == 0 else value
    owner, key = _get(value, at[:-1]), at[-1]
    kind = rng.randrange(10)
    if kind < 6:
        owner[key] = copy.deepcopy(rng.choice(ODD))
    elif kind == 6:
        del owner[key]
    elif kind == 7:
        owner[key] = [owner[key]] if rng.randrange(2) else {"a": owner[key]}
    elif isinstance(owner, dict):
        names = [*more, *owner, "a", "", "\0"]
        owner[rng.choice(names)] = copy.deepcopy(rng.choice(ODD) if kind == 8 else owner[key])
    else:
        owner.insert(key, copy.deepcopy(rng.choice(owner)))
    return value


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    parts = text.split(_RAW)
    # Odd parts stood between two marks, inside the quotes of a JSON string.
    for index in range(1, len(parts), 2):
        parts[index - 1] = parts[index - 1].removesuffix('"')
        parts[index] = json.loads(f'"{parts[index]}"') if "\\" in parts[index] else parts[index]
        if index + 1 < len(parts):
            parts[index + 1] = parts[index + 1].removeprefix('"')
    return "".join(parts)


def edit(rng: random.Random, values: Sequence[Any], more: Sequence[str]) -> bytes:
    """One example of ``edited``."""
    value = copy.deepcopy(rng.choice(values))
    for _ in range(rng.randint(1, 3)):
        value = _edit(rng, value, more)
    return _damaged(rng, _text(value).encode("utf-8", "surrogatepass"), 8)


_BYTES = (b"", b"\0", b"\xff", b"[", b"}", b'"', b"\\", b",", b"0", b"\xef\xbb\xbf", b"\xff\xfe")


def _damaged(rng: random.Random, data: bytes, rate: int) -> bytes:
    if rng.randrange(rate) or not data:
        return data
    at, behind = rng.randrange(len(data)), rng.randrange(5)
    start = data[:at] + rng.choice(_BYTES)
    return start if behind == 4 else start + data[at + behind :]


def drawn(make: Callable[..., Any], *facts: Any) -> st.SearchStrategy[Any]:
    """What ``make(rng, *facts)`` gives. One number is drawn for an example: a draw for each choice costs more than
    the readers do."""
    return st.integers(0, 2**64 - 1).map(lambda seed: make(random.Random(seed), *facts))


def edited(values: Sequence[Any], more: Sequence[str] = ()) -> st.SearchStrategy[bytes]:
    """The bytes of a JSON file: one of ``values`` with one to three changes, now and then damaged as a text.

    ``more``: names that the grammar knows besides those that are there.
    """
    return drawn(edit, values, more)


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """``data`` cut, or with bytes changed, put in or taken out."""
    return drawn(_damaged, data, 1)


def fuzz(strategy: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Any]:
    """Two tests of a function of (folder, example): a short one of the plain set, and a long one marked slow.

    The function may raise errors of ours. The examples are the same each time; ``--hypothesis-seed`` takes others.
    """

    def make(function: Callable[[Path, Any], object]) -> Any:
        def one(folder: Path, example: Any) -> None:
            try:
                function(folder, example)
            except PaddleMixError as error:
                text = str(error)
                assert 0 < len(text) <= 9000
                assert text.isprintable() or not set(text) & set("\x00\x1b\x9b\r\b"), text

        @pytest.mark.parametrize("count", _COUNTS)
        def test(tmp_path: Path, count: int, request: pytest.FixtureRequest) -> None:
            seeded = request.config.getoption("--hypothesis-seed", None) is not None
            rules = settings(
                max_examples=count,
                deadline=None,
                database=None,
                derandomize=not seeded,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            rules(given(strategy)(lambda example: one(tmp_path, example)))()

        test.__doc__ = function.__doc__
        test.__name__ = function.__name__
        return test

    return make


def put(path: Path, data: bytes) -> None:
    """Write a file of a few hundred bytes; without fsync and the like, since it is written a hundred thousand times."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(handle, data)
    os.close(handle)
