# SPDX-License-Identifier: Apache-2.0
"""What a run reads is looked at before paddle is imported and before anything is written."""

import json
import subprocess
import sys

import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.run import finetune
from paddlemix.utils.errors import DataError
from tests.tiny import tiny_model, tiny_tokenizer_folder, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    model = tiny_model()
    save_model(root / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    write_rows(root)
    rows = json.loads((root / "train.json").read_text())
    rows[2]["image"] = "gone.png"
    rows[3]["source"] = "somewhere"
    (root / "bad.json").write_text(json.dumps(rows))
    return root


def arguments(place, output, **keys):
    values = {
        "model_name_or_path": place / "model",
        "data_path": place / "bad.json",
        "image_folder": place,
        "output_dir": output,
        "do_train": "true",
        "device": "cpu",
        "per_device_train_batch_size": 2,
        "save_strategy": "no",
        **keys,
    }
    return [part for name, value in values.items() for part in (f"--{name}", str(value))]


def test_a_missing_picture_is_told_before_paddle_is_imported_and_before_anything_is_written(place, tmp_path):
    code = (
        "import sys\n"
        "from paddlemix.settings.run.loader import load_settings\n"
        "from paddlemix.trainer.run import finetune\n"
        "try:\n    finetune(load_settings(sys.argv[1:]))\n"
        "finally:\n    print('paddle' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, *arguments(place, tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "/2: " in done.stderr
    assert "gone.png: no such image file" in done.stderr
    assert done.stdout.split()[-1] == "False"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("how", "when"), [("header", "before"), ("none", "during")])
def test_a_skipped_picture_is_listed_once_whenever_it_was_found(place, tmp_path, capsys, how, when):
    keys = dict(on_bad_sample="skip", check_images=how, num_train_epochs=2)
    folder = finetune(load_settings(arguments(place, tmp_path / "out", **keys))).folder
    (line,) = [json.loads(line) for line in (folder / "bad_samples.jsonl").read_text().splitlines()]
    assert line["where"].endswith("bad.json: /2")
    shown = " ".join(capsys.readouterr().out.split())
    assert "skipped 1 of 6 rows" in shown
    assert 'note: keys of rows that are not read: "source" (1 times)' in shown


def test_without_the_look_a_missing_picture_stops_the_run_at_its_row(place, tmp_path):
    with pytest.raises(DataError, match=r"/2: .*gone\.png: no such image file"):
        finetune(load_settings(arguments(place, tmp_path / "out", check_images="none")))
