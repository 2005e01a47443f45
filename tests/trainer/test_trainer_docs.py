"""What the documents say about training is so."""

import json
import re
import shlex
from pathlib import Path

from paddlemix.settings.run.loader import load_settings
from paddlemix.trainer.resuming import LENGTH, MAY_CHANGE
from paddlemix.trainer.run import finetune
from tests.trainer.keys_table import table, written
from tests.trainer.run_kit import arguments

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


def test_every_method_of_the_training_document_trains(place: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    section = text.split("## Methods by a key")[1].split("\n## ")[0]
    examples = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", section, re.S)]
    assert len(examples) == 7
    for number, example in enumerate(examples):
        keys = {name: value if isinstance(value, str) else json.dumps(value) for name, value in example.items()}
        settings = load_settings(arguments(place, tmp_path / str(number), max_steps=1, num_train_epochs=None, **keys))
        assert not [note for note in settings.notes if "has no effect" in note]
        assert finetune(settings).steps == 1
