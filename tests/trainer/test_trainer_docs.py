"""What the documents say about training is so."""

import re
import shlex
from pathlib import Path

from paddlemix.settings.run.loader import load_settings
from paddlemix.trainer.resuming import LENGTH, MAY_CHANGE
from tests.trainer.keys_table import table, written

ROOT = Path(__file__).resolve().parents[2]


def test_the_table_of_keys_is_that_of_the_settings():
    assert written() == table(), "run: python -m tests.trainer.keys_table"


def test_every_command_of_the_training_document_is_read_without_an_error(tmp_path):
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:paddlemix|DEVICES=\S+ sh) (\S+) (\S+\.json)(.*)$", text, re.MULTILINE)
    assert len(commands) == 6
    for command, recipe, more in commands:
        assert command in ("sft", "pretrain") or (ROOT / command).is_file()
        argv = [str(ROOT / recipe), *shlex.split(more)]
        if "--output_dir" in argv:
            argv[argv.index("--output_dir") + 1] = str(tmp_path)
        training = load_settings(argv).training
        assert training.do_train or training.do_eval


def test_keys_that_may_change_on_resume_exist():
    from paddlemix.settings.run.training import KNOWN

    assert set(KNOWN) >= MAY_CHANGE | set(LENGTH)
