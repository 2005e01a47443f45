# SPDX-License-Identifier: Apache-2.0
"""Family h: the order of LLaVA's length and modality grouped sampler, with its permutations injected."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlemix.datasets.sampler import even_chunks, length_grouped, modality_grouped
from tools.golden.case import Case, guarded

FILE = Path("h_sampler") / "sampler.json"
GROUPINGS = {"modality": modality_grouped, "length": length_grouped}


class _Recorded:
    """Gives the recorded permutations in the order in which they were drawn."""

    def __init__(self, calls: list[list[int]]) -> None:
        self.calls = list(calls)

    def __call__(self, count: int) -> list[int]:
        if not self.calls or len(self.calls[0]) != count:
            raise ValueError(f"a permutation of {count} is asked for, the original drew another one here")
        return self.calls.pop(0)


def run(folder: Path) -> Iterator[Case]:
    """Every case of ``folder/h_sampler/sampler.json``."""
    if not (folder / FILE).is_file():
        return
    data = json.loads((folder / FILE).read_text(encoding="utf-8"))
    for number, case in enumerate(data["cases"]):
        for name, group in GROUPINGS.items():
            if name in case:
                label = f"h/{name}/{number}_{case.get('kind', '')}"
                yield from guarded(label, _order, label, group, case, case[name])
    for number, case in enumerate(data.get("split_to_even_chunks", [])):
        yield from guarded(f"h/even_chunks/{number}", _chunks, f"h/even_chunks/{number}", case)


def _chunks(name: str, case: dict[str, Any]) -> Case:
    return _exact(name, even_chunks(case["indices"], case["lengths"], case["num_chunks"]) == case["out"], "")


def _order(name: str, group: Any, case: dict[str, Any], expected: dict[str, Any]) -> Case:
    permute = _Recorded(expected["randperm_calls"])
    try:
        order = group(case["lengths"], case["batch_size"], case["world_size"], permute)
    except ValueError as error:
        return _exact(name, False, str(error))
    reason = f"{len(permute.calls)} permutations were not used" if permute.calls else ""
    return _exact(name, order == expected["indices"] and not permute.calls, reason)


def _exact(name: str, same: bool, reason: str) -> Case:
    return Case(name, 0.0 if same else 1.0, 0.0, "ok" if same else "fail", reason)
