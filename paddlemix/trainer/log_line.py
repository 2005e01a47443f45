# SPDX-License-Identifier: Apache-2.0
"""The console lines of a log entry: each at most 100 columns, whatever the numbers are."""

from collections.abc import Iterator, Mapping
from typing import TypeAlias

from paddlemix.utils.logging import COLUMNS
from paddlemix.utils.shown import escaped

Entry: TypeAlias = Mapping[str, float | int | str | None]

_FIRST = {
    "loss": "loss",
    "eval_loss": "eval_loss",
    "train_loss": "train_loss",
    "learning_rate": "lr",
    "grad_norm": "grad_norm",
}
"""Numbers that stand on the first line of every entry that has them, and how they are called there."""

_DROPPED = ("interval_samples_per_second", "memory", "padding", "mfu", "interval_tokens_per_second")
"""What leaves the line, the first one first, where the line would be too long; ``train_log.jsonl`` has all of it."""

_NOT_SHOWN = (
    "global_step", "epoch", "progress_or_epoch", "loss_jumps", "eta_seconds", "eval_labels", "eval_generated",
    "max_memory_allocated", "max_memory_resident", "total_flos", *_DROPPED,
)  # fmt: skip
_NOT_SHOWN_ENDS = ("_runtime", "_per_second")
_ASKED = ("eval_", "predict_")
"""What evaluations without a loss (``eval_benchmarks`` alone) and predictions call their metrics."""

_NAME = 40
"""Columns that the name of a number may take."""


def console_lines(entry: Entry, step: int, total: int) -> list[str]:
    """The entry for a person: the first line of step, losses, rate, speed and time left, then all other numbers.

    Nothing for an entry without a loss, a metric of an evaluation or a metric of predictions.
    """
    others = list(_others(entry))
    asked = others and any(name.startswith(_ASKED) for name in entry)
    if not asked and not any(name.endswith("loss") for name in entry):
        return []
    parts = {"step": f"step: {step}/{total}"}
    parts |= {name: f"{short}: {entry[name]:.4g}" for name, short in _FIRST.items() if name in entry}
    parts |= dict(_speeds(entry))
    if entry.get("eta_seconds") is not None:
        parts["eta"] = f"ETA {duration(entry['eta_seconds'])}"
    for name in _DROPPED:
        if len(", ".join(parts.values())) > COLUMNS:
            parts.pop(name, None)
    first = ", ".join(parts.values())
    if len(others) == 1 and len(first) + len(others[0]) <= COLUMNS:
        return [f"{first}, {others[0].strip()}"]
    return [first, *others]


def _speeds(entry: Entry) -> Iterator[tuple[str, str]]:
    if entry.get("interval_tokens_per_second"):
        yield "interval_tokens_per_second", f"{entry['interval_tokens_per_second']:,.0f} tokens/s"
    if entry.get("interval_samples_per_second"):
        yield "interval_samples_per_second", f"{entry['interval_samples_per_second']:.3g} rows/s"
    if entry.get("mfu") is not None:
        yield "mfu", f"MFU {entry['mfu']:.0%}"
    if entry.get("padding") is not None:
        yield "padding", f"padding {entry['padding']:.0%}"
    memory = entry.get("max_memory_allocated", entry.get("max_memory_resident"))
    if memory is not None:
        yield "memory", f"{memory:.3g} GiB"


def _others(entry: Entry) -> Iterator[str]:
    """Lines of at most ``COLUMNS`` with the numbers that have no place on the first one: metrics, rewards."""
    line = ""
    for name, value in entry.items():
        known = name in _FIRST or name in _NOT_SHOWN or name.endswith(_NOT_SHOWN_ENDS)
        if known or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        name = escaped(name, kept="")
        name = name if len(name) <= _NAME else f"{name[: _NAME - 3]}..."
        part = f"{name}: {value:.4g}"
        if line and len(line) + 2 + len(part) > COLUMNS:
            yield line
            line = ""
        line = f"{line}, {part}" if line else f"  {part}"
    if line:
        yield line


def duration(seconds: float) -> str:
    """``0:05``, ``3:12:05`` or ``2d 04:05`` (days, hours and minutes)."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minutes:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
