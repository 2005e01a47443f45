# SPDX-License-Identifier: Apache-2.0
"""What a person reads: lines that fit, commands in one piece, and quiet where it was asked for."""

import io
import logging
from pathlib import Path

import pytest
from rich.console import Console

from paddlemix.utils import logging as ours


def test_long_remarks_are_broken_at_blanks_and_nothing_else() -> None:
    path = "/a-long-path/" * 12
    text = f"{'word ' * 40}{path} {'more ' * 30}end"
    lines = ours.fit(text).splitlines()
    assert path in [line.strip() for line in lines]
    assert all(len(line) <= ours.COLUMNS for line in lines if path not in line)
    assert " ".join(" ".join(lines).split()) == text
    assert ours.fit("one\n  two") == "one\n  two"


@pytest.mark.parametrize("width", [40, 80])
def test_a_command_is_in_one_piece_on_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(
        ours, "console", lambda: Console(file=screen, force_terminal=True, width=width, highlight=False)
    )
    command = "paddlemix chat --model-path 'a [bold] folder' --image-file " + "long/" * 20
    ours.say_command(command)
    assert screen.getvalue() == f"  {command}\n"


def test_quiet_loggers_still_warn_unless_the_environment_sets_the_level(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = ours.get_logger("paddlemix.some.room")
    monkeypatch.setattr(logging.getLogger("paddlemix.some"), "level", logging.NOTSET)
    monkeypatch.setenv("PADDLEMIX_LOG_LEVEL", "INFO")
    ours.quiet("some")
    logger.info("heard")
    monkeypatch.delenv("PADDLEMIX_LOG_LEVEL")
    ours.quiet("some")
    logger.info("not heard")
    logger.warning("heard too")
    assert capsys.readouterr().err == "heard\nwarning: heard too\n"


def test_lines_of_libraries_wait_in_memory_until_there_is_a_file(tmp_path: Path) -> None:
    held = logging.getLogger("paddle.held")
    ours.hold_library_logs()
    held.warning("before the run")
    ours.held_stream().write("said while it was imported\n")
    assert list(tmp_path.iterdir()) == []
    ours.redirect_library_logs(tmp_path / "train.rank1.log")
    held.warning("in the run")
    text = (tmp_path / "train.rank1.log").read_text()
    assert [part in text for part in ("before the run", "said while", "in the run")] == [True] * 3
    assert text.index("before the run") < text.index("in the run")
    ours.redirect_library_logs(tmp_path / "other.log")
    held.warning("later")
    assert "before the run" not in (tmp_path / "other.log").read_text()
    ours.forget_library_logs(tmp_path / "other.log")
