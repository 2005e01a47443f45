"""The table of keys in paddlemix/tools/README.md; ``python -m tests.trainer.keys_table`` writes it anew."""

import json
from pathlib import Path

from paddlemix.settings.run.training import KNOWN

README = Path(__file__).resolve().parents[2] / "paddlemix" / "tools" / "README.md"
BEGIN, END = "<!-- keys:begin -->\n", "<!-- keys:end -->"


def table() -> str:
    """Markdown: one row for each key that acts, in the order of the groups."""
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for name, known in KNOWN.items():
        if known.facts.fixed is not None:
            continue
        default = "required" if known.facts.needed else f"`{json.dumps(known.default)}`"
        choices = f" One of {', '.join(known.facts.choices)}." if known.facts.choices else ""
        meaning = known.facts.meaning.replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {meaning}{choices} |")
    return "\n".join(lines) + "\n"


def written() -> str:
    """The table as it stands in the README."""
    return README.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    README.write_text(text.replace(written(), table()), encoding="utf-8")
