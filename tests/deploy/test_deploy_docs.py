# SPDX-License-Identifier: Apache-2.0
"""What the documents on clusters and cards tell a person to run exists, with these flags."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from paddlemix.utils.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
DOCS = [ROOT / "docs" / "npu-first-hour.md", ROOT / "docs" / "cluster.md", ROOT / "deploy" / "npu" / "README.md"]


def commands():
    """Every command of the code blocks, continued lines joined."""
    found = []
    for path in DOCS:
        for block in re.findall(r"```\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.S):
            lines = block.replace("\\\n", " ").splitlines()
            found += [part.strip() for line in lines for part in re.split(r"[;|]", line) if part.strip()]
    return found


def parser_of(script):
    spec = importlib.util.spec_from_file_location(f"docs_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    import sys

    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module.parser() if hasattr(module, "parser") else None


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_a_command_of_the_documents_names_files_and_flags_that_exist(command):
    words = [word for word in shlex.split(command) if not re.match(r"^[A-Z_]+=", word)]
    for word in words:
        if re.match(r"^(paddlemix|deploy|config|tests|tools)/[\w./-]+$", word):
            assert (ROOT / word).exists(), word
    if words[0] == "paddlemix":
        script, arguments = COMMANDS[words[1]].script, words[2:]
    elif scripts := [word for word in words if word.endswith(".py")]:
        script, arguments = ROOT / scripts[0], words[words.index(scripts[0]) + 1 :]
    else:
        return
    if (parser := parser_of(script)) is not None:
        parser.parse_args(arguments[: arguments.index(">")] if ">" in arguments else arguments)


def test_every_known_combination_stands_in_the_table_of_the_document():
    from paddlemix.doctor import versions

    text = (ROOT / "docs" / "npu.md").read_text(encoding="utf-8")
    rows = re.search(r"^\| paddle and `paddle-custom-npu` \|(?:.+\n)+", text, re.MULTILINE)[0].splitlines()
    for known in versions.KNOWN:
        (row,) = [row for row in rows if re.search(rf"(?<![\w.]){re.escape(known.plugin)}(?![\w.])", row)]
        assert known.paddle in row
        assert (known.cann or "not said") in row
        assert (known.python or "not said") in row


def test_the_documents_hold_commands():
    assert len(set(commands())) >= 12


def test_the_number_of_tests_for_a_card_is_told_as_it_is():
    from tests.npu import test_npu_card as card

    single = [name for name in vars(card) if name.startswith("test_")]
    total = len(single) - 1 + len(card.CHECKS) * len(card.HALF)
    assert f"`{total} passed`" in DOCS[0].read_text(encoding="utf-8")


def test_configs_with_overrides_of_the_documents_load():
    from paddlemix.settings.run.loader import load_settings

    checked = 0
    for command in commands():
        found = re.search(r"(?:launch\.sh|paddlemix sft) ((?:paddlemix/)?config/\S+\.json)(.*)", command)
        if found:
            load_settings([str(ROOT / found.group(1)), *shlex.split(found.group(2))])
            checked += 1
    assert checked >= 5
