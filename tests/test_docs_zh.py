# SPDX-License-Identifier: Apache-2.0
"""The Chinese pages keep step with the English ones: same headings, commands, names in code, figures, table rows."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = ("training", "data", "checkpoints", "npu", "npu-first-hour", "cluster", "demo", "evaluation")
"""What a user in China asked for first; every page in ``docs/zh`` is checked, these must be there."""


def blocks(text: str) -> list[str]:
    """The code blocks, without comments and blanks at the ends of lines (comments are translated)."""
    found = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.S | re.M)
    return ["\n".join(re.sub(r"\s+#\s.*$", "", line).rstrip() for line in block.splitlines()) for block in found]


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```\n", "", text, flags=re.S | re.M)


def headings(text: str) -> list[str]:
    """The levels of the headings, and the numbers that some begin with."""
    return re.findall(r"^(#+ (?:\d+\.)?)", prose(text), flags=re.M)


def rows(text: str) -> list[int]:
    """How many cells each row of a table has."""
    return [line.replace("\\|", "").count("|") for line in prose(text).splitlines() if line.startswith("|")]


def names(text: str) -> Counter[str]:
    """What stands in backquotes: keys, flags, files and quoted output, which no translation touches."""
    return Counter(re.sub(r"\s+", " ", name) for name in re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", prose(text)))


def numbers(text: str) -> Counter[str]:
    """The figures outside code, so that a new measurement reaches both pages."""
    return Counter(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"`[^`]*`", "", prose(text))))


def pair(name: str) -> tuple[str, str]:
    return tuple((folder / f"{name}.md").read_text(encoding="utf-8") for folder in (DOCS, DOCS / "zh"))


@pytest.mark.parametrize("name", sorted({*PAGES, *(path.stem for path in (DOCS / "zh").glob("*.md"))}))
def test_a_chinese_page_says_what_the_english_one_says(name: str) -> None:
    english, chinese = pair(name)
    assert blocks(chinese) == blocks(english)
    assert headings(chinese) == headings(english)
    assert rows(chinese) == rows(english)
    for held in (names, numbers):
        missing, more = held(english) - held(chinese), held(chinese) - held(english)
        assert (missing, more) == (Counter(), Counter()), held.__name__


@pytest.mark.parametrize("name", PAGES)
def test_the_two_pages_lead_to_each_other(name: str) -> None:
    english, chinese = pair(name)
    assert f"[简体中文](zh/{name}.md)" in english
    assert f"[English](../{name}.md)" in chinese


def test_the_chinese_readme_leads_to_the_chinese_pages() -> None:
    text = (ROOT / "README_zh.md").read_text(encoding="utf-8")
    linked = set(re.findall(r"\]\(docs/([\w-]+)\.md\)", text))
    assert not linked & set(PAGES)


def test_links_of_chinese_pages_lead_to_files() -> None:
    dead = [
        f"{path.name}: {link}"
        for path in (DOCS / "zh").glob("*.md")
        for link in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
        if "://" not in link and not (path.parent / link).exists()
    ]
    assert not dead
