# SPDX-License-Identifier: Apache-2.0
"""Counts the lines of docs/reliability.md by their state, writes the counts into the page, and checks the named tests.

    python tools/reliability.py [--check]

Exit code 1 when a named test does not exist, a number is missing or twice, a state is not that of the tests, or (with
--check) the counts are not those of the table.
"""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
STATES = ("tested", "tested in the slow set", "not verified", "not built")
LAST = 125

_ROW = re.compile(r"^\| (\d+) \|.*\| ([^|]*) \|$", re.M)
_COUNTS = re.compile(r"<!-- counts -->.*?\n(?=\n\|)", re.S)


def counts(text: str) -> str:
    """The line of counts that belongs to the table in ``text``."""
    found = Counter(state for _, state in _ROW.findall(text))
    parts = ", ".join(f"{found[state]} {state}" for state in STATES if found[state])
    return f"<!-- counts --> {sum(found.values())} lines: {parts}.\n"


def faults(text: str) -> list[str]:
    """What is wrong with the table."""
    rows = _ROW.findall(text)
    numbers = [int(number) for number, _ in rows]
    found = [] if numbers == list(range(1, LAST + 1)) else [f"the lines are not numbered 1 to {LAST}: {numbers}"]
    found += [f'line {number}: unknown state "{state}"' for number, state in rows if state not in STATES]
    for number, line in re.findall(r"^\| (\d+) \|(.*)$", text, flags=re.M):
        kinds = {}
        for file, name in re.findall(r"`([\w/]+\.py)::(\w+)`", line):
            kinds[f"{file}::{name}"] = _kind(ROOT / "tests" / file, name)
        found += [f"line {number}: there is no test {test}" for test, kind in kinds.items() if kind is None]
        wanted = STATES[0] if "plain" in kinds.values() else STATES[1]
        state = line.rstrip(" |").rpartition("| ")[2]
        if (state in STATES[:2]) != bool(kinds) or (kinds and state != wanted):
            found.append(f'line {number}: the state is "{state}", its tests are {sorted(map(str, kinds.values()))}')
    return found


def _kind(path: Path, name: str) -> str | None:
    """``slow`` for a test that the plain set leaves out, else ``plain``; None when there is none of that name."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    found = re.search(rf"((?:^@.*\n(?:[ )].*\n)*)*)^def {name}\(", text, flags=re.M)
    if found is None:
        return None
    return "slow" if re.search(r"^@pytest\.mark\.slow", found[1], flags=re.M) else "plain"


def main(argv: Sequence[str] | None = None) -> int:
    """Check the page, and write the counts unless ``--check``."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    text = PAGE.read_text(encoding="utf-8")
    found = faults(text)
    line = counts(text)
    new = _COUNTS.sub(lambda _: line, text, count=1)
    if new != text and "--check" in arguments:
        found.append("the counts are not those of the table; run python tools/reliability.py")
    elif new != text:
        PAGE.write_text(new, encoding="utf-8")
    print("\n".join(found) or line.removeprefix("<!-- counts --> ").strip())
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
