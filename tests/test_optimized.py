# SPDX-License-Identifier: Apache-2.0
"""``python -O`` leaves out every ``assert``: no command may behave in another way then."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_model, tiny_tokenizer_folder, write_rows

ROOT = Path(__file__).resolve().parent.parent


def sft(**changes: object) -> list[str]:
    """A command line of two steps with LoRA."""
    keys = {
        "model_name_or_path": "model", "image_folder": ".", "data_path": "train.json", "output_dir": "new",
        "device": "cpu", "do_train": "true", "max_steps": 2, "save_strategy": "no", "lora": "true", **changes,
    }  # fmt: skip
    return ["sft", *(part for name, value in keys.items() for part in (f"--{name}", str(value)))]


ANSWER = ["--model-path", "out", "--temperature", "0", "--max-new-tokens", "4", "--device", "cpu"]
CHAT = ["chat", *ANSWER]
COMMANDS: list[tuple[int, list[str]]] = [
    (0, sft(output_dir="out", learning_rate=1e-3, skip_profile_timer="false")),
    (2, sft(learning_rate=-1)),
    (2, sft(data_path="bad_rows.json")),
    (2, sft(data_path="bad_image.json")),
    (2, sft(model_name_or_path="cut")),
    (2, sft(output_dir="images.txt")),
    (0, [*CHAT, "--query", "what colour?", "--image-file", "0.png"]),
    (2, [*CHAT, "--query", "what colour?", "--image-file", "images.txt"]),
    (2, [*CHAT, "--query", "what colour?", "--image-file", "http://127.1/a.png"]),
    (2, [*CHAT, "--num-beams", "1000000"]),
    (0, ["multiview", *ANSWER, "--image-file", "0.png", "--query", "what?"]),
    (0, ["merge", "--lora_path", "out", "--merge_model_path", "merged"]),
    (2, ["merge", "--lora_path", "out", "--merge_model_path", "merged"]),
    (2, ["merge", "--lora_path", "out", "--model_name_or_path", "cut", "--merge_model_path", "other"]),
    (0, ["convert", "--src", "merged", "--dst", "hf", "--to", "llava-hf"]),
    (2, ["convert", "--src", "cut", "--dst", "new", "--to", "llava-hf"]),
    (2, ["convert", "--src", "pickle", "--dst", "new", "--to", "llava-hf"]),
    (1, ["doctor", "flipped", "--verify"]),
    (0, ["doctor", "merged", "--verify"]),
]
"""Exit codes and command lines, carried out in this order."""

CODE = """
import contextlib, importlib, io, json, sys
from paddlemix.utils.commands import COMMANDS
said = []
for verb, *arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = importlib.import_module(COMMANDS[verb].module).main(arguments)
        except SystemExit as end:
            code = end.code
        except Exception as error:
            code = f"{type(error).__name__}: {error}"
    said.append([code, out.getvalue(), err.getvalue()])
print("RESULT" + json.dumps([__debug__, said]))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, the same with a flipped bit, cut short and as a hostile pickle; good and bad rows."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.text.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("place")
    model = tiny_model()
    save_model(root / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    write_rows(root)
    rows = json.loads((root / "train.json").read_text())
    (root / "images.txt").write_text("no image")
    (root / "bad_image.json").write_text(json.dumps([*rows, {**rows[0], "image": "images.txt"}]))
    (root / "bad_rows.json").write_text(
        json.dumps([*rows, {**rows[0], "conversations": rows[0]["conversations"][::-1]}])
    )
    for name in ("flipped", "cut", "pickle"):
        shutil.copytree(root / "model", root / name)
    weights = root / "flipped" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 64
    weights.write_bytes(data)
    (root / "cut" / "model.safetensors").write_bytes(data[:-9])
    (root / "pickle" / "model.safetensors").unlink()
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch executed'\ntR.")
    return root


def runs(place: Path, folder: Path, *options: str) -> tuple[bool, list[list], dict[str, str]]:
    """Whether assertions were on, (code, output, error output) of each command, and the sums of what they wrote."""
    shutil.copytree(place, folder)
    done = subprocess.run(
        [sys.executable, *options, "-c", CODE, json.dumps([command for _, command in COMMANDS])],
        cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PADDLEMIX_HUB": "off", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    asserting, said = json.loads(done.stdout.rpartition("RESULT")[2])
    written = {str(path.relative_to(folder)): path for path in folder.rglob("*.safetensors")}
    return asserting, said, {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in written.items()}


def without_times(text: str, folder: Path) -> str:
    """What is said, but for figures of speed, memory and time of day, whose digits move the ends of lines."""
    return " ".join(re.sub(r"\d+", "0", text.replace(str(folder), "FOLDER")).split())


@pytest.mark.timeout(700)
def test_every_command_says_and_writes_the_same_without_assertions(place: Path, tmp_path: Path) -> None:
    plain, optimized = tmp_path / "plain", tmp_path / "bare"
    asserting, said, written = runs(place, plain)
    bare_asserting, bare_said, bare_written = runs(place, optimized, "-O")
    assert (asserting, bare_asserting) == (True, False)
    assert [code for code, *_ in said] == [code for code, _ in COMMANDS]
    for (_, command), one, other in zip(COMMANDS, said, bare_said, strict=True):
        assert one[0] == other[0], command
        for left, right in zip(one[1:], other[1:], strict=True):
            assert without_times(left, plain) == without_times(right, optimized), command
    assert {"out/lora_model_state.safetensors", "merged/model.safetensors", "hf/model.safetensors"} <= set(written)
    assert written == bare_written
    assert not (optimized / "executed").exists()
