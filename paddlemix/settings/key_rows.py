# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of tensor names: how a tensor is called in published files, and how in ours."""

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PLACE = re.compile(r"\{([^}]*)\}")


@dataclass(frozen=True)
class KeyRow:
    """Name there, name here. ``{n}`` is a number, ``{a|b}`` one of the words; both stand in the same order.

    ``transpose``: a Linear weight, ``[out, in]`` there and ``[in, out]`` here.
    """

    theirs: str
    ours: str
    transpose: bool = False


def same(names: Iterable[str], *, transpose: bool = False) -> tuple[KeyRow, ...]:
    """Rows of tensors that are called alike there and here."""
    return tuple(KeyRow(name, name, transpose) for name in names)


def spelled_out(row: KeyRow) -> Iterator[tuple[str, str]]:
    """Every pair (name there, name here) that a row means; numbers stay ``{n}``."""
    places = [match[1] for match in PLACE.finditer(row.theirs)]
    for words in itertools.product(*(["{n}"] if place == "n" else place.split("|") for place in places)):
        yield insert(row.theirs, words), insert(row.ours, words)


def insert(template: str, values: Iterable[str]) -> str:
    """``template`` with its places filled, in their order."""
    remaining = iter(values)
    return PLACE.sub(lambda _: next(remaining), template)
