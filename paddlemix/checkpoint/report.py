# SPDX-License-Identifier: Apache-2.0
"""What became of every tensor while a model was loaded."""

from dataclasses import dataclass, field

from paddlemix.utils.errors import CheckpointError

SHOWN = 20
"""Names that an error lists before it only counts."""


@dataclass
class LoadReport:
    """Every stored tensor and every parameter stands in exactly one of these tables."""

    where: str
    loaded: dict[str, str] = field(default_factory=dict)
    """Parameter -> the file it came from."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Stored name -> why it is not needed."""
    initialised: dict[str, str] = field(default_factory=dict)
    """Parameter -> why it was drawn anew (asked for, never silently)."""
    missing: dict[str, str] = field(default_factory=dict)
    """Parameter -> what to do about it."""
    left_over: dict[str, str] = field(default_factory=dict)
    """Stored name -> the file that holds it."""
    mis_shaped: dict[str, str] = field(default_factory=dict)
    """Parameter -> found and expected shape."""
    not_finite: list[str] = field(default_factory=list)
    """Parameters with a NaN or an infinite value."""
    notes: list[str] = field(default_factory=list)
    """Choices that were made, in words."""
    warnings: list[str] = field(default_factory=list)
    """Choices that may not be what was meant, each with the way to another one."""

    def problems(self) -> list[str]:
        """One line for each tensor that is missing, left over or of another shape."""
        return [
            *(f'missing "{name}"{_because(why)}' for name, why in self.missing.items()),
            *(f'left over "{name}" in {file}' for name, file in self.left_over.items()),
            *(f'wrong shape "{name}": {shapes}' for name, shapes in self.mis_shaped.items()),
        ]

    def require_clean(self) -> None:
        """CheckpointError that lists at most 20 problems and counts the rest."""
        problems = self.problems()
        if not problems:
            return
        shown = "\n".join(f"  {line}" for line in problems[:SHOWN])
        rest = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        hints = list(dict.fromkeys(self.missing.values()))
        advice = "".join(f"\n{hint}" for hint in hints if hint)
        raise CheckpointError(f"{self.where}: {len(problems)} tensors do not fit the model:\n{shown}{rest}{advice}")

    def summary(self) -> str:
        """One line for the console."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        if self.ignored:
            parts.append(f"{len(self.ignored)} known and not needed")
        if self.initialised:
            parts.append(f"{len(self.initialised)} drawn anew")
        if self.not_finite:
            parts.append(f"{len(self.not_finite)} with NaN or infinity")
        return f"{self.where}: " + ", ".join(parts)


def _because(why: str) -> str:
    return "" if not why else " (see below)"
