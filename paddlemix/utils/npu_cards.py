# SPDX-License-Identifier: Apache-2.0
"""The Ascend cards of this machine as the driver's tool shows them (``npu-smi info``), and the memory of each."""

import re
import shutil
import subprocess
from dataclasses import dataclass

from paddlemix.utils import env

SMI_SECONDS = 30

DRIVER_SHARE = 0.05
"""The driver keeps about so much of a card's memory for itself: 3.4 of 64 GB on a 910B that nobody uses."""

_FIRST = re.compile(r"^\|\s*(\d+)\s+(\S+)\s*\|\s*([A-Za-z]+)\s*\|")
_SECOND = re.compile(r"(\d+)\s*/\s*(\d+)\s*\|\s*$")
_TOOL = re.compile(r"npu-smi\s+(\S+)\s+Version:\s*(\S+)")


@dataclass(frozen=True)
class Card:
    """One row of ``npu-smi info``; memory in MB."""

    number: int
    name: str
    health: str
    used: int
    memory: int


@dataclass(frozen=True)
class Cards:
    """What ``npu-smi info`` tells, or why it tells nothing."""

    cards: tuple[Card, ...] = ()
    driver: str | None = None
    problem: str | None = None


def read_cards() -> Cards:
    """Ask ``npu-smi info``."""
    tool = shutil.which("npu-smi")
    if tool is None:
        return Cards(problem="npu-smi is not on the PATH: no Ascend driver here, or not mounted into the container")
    try:
        done = subprocess.run([tool, "info"], capture_output=True, text=True, timeout=SMI_SECONDS, check=False)  # noqa: S603 - the tool of the driver, no input of ours
    except subprocess.TimeoutExpired:
        return Cards(problem=f"npu-smi info gave no answer in {SMI_SECONDS} s: the driver hangs; restart the machine")
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        return Cards(problem=f"npu-smi info ended with {done.returncode}: {said[0] if said else 'no message'}")
    return parse_cards(done.stdout)


def parse_cards(text: str) -> Cards:
    """The table of ``npu-smi info``: two rows for each card, memory in the last column of the second."""
    tool = _TOOL.search(text)
    cards: list[Card] = []
    open_row: re.Match[str] | None = None
    for line in text.splitlines():
        first, second = _FIRST.match(line), _SECOND.search(line)
        if first and first.group(2) not in ("No",):
            open_row = first
        elif open_row is not None and second:
            number, name, health = open_row.groups()
            cards.append(Card(int(number), name, health, int(second.group(1)), int(second.group(2))))
            open_row = None
    problem = None if cards else "npu-smi info shows no card"
    return Cards(tuple(cards), tool.group(2) if tool else None, problem)


def visible(cards: tuple[Card, ...]) -> tuple[Card, ...]:
    """Those that ASCEND_RT_VISIBLE_DEVICES leaves to this process; it counts them in the order of the table."""
    value = env.raw("ASCEND_RT_VISIBLE_DEVICES")
    if not value:
        return cards
    numbers = [int(part) for part in value.split(",") if part.isascii() and part.isdigit()]
    return tuple(cards[number] for number in numbers if number < len(cards))


def free_bytes() -> int | None:
    """Memory in bytes that a run may take on the smallest card of this process; None where the tool tells nothing."""
    sizes = [card.memory for card in visible(read_cards().cards)]
    return int(min(sizes) * 2**20 * (1 - DRIVER_SHARE)) if sizes else None
