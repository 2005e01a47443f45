# SPDX-License-Identifier: Apache-2.0
"""The batch tools and the multi-view chat as a person starts them, with a tiny model; kills and what comes after."""

import json
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paddlemix.annotate.annotator import Annotator
from paddlemix.annotate.scripts import OBJ
from paddlemix.checkpoint.save import save_model
from paddlemix.generation.sampling import Decoding
from paddlemix.text.messages import Message
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import DataError
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

ROOT = Path(__file__).resolve().parents[2]
CHAT = ROOT / "paddlemix" / "examples" / "mv_llava" / "run_predict_multiview.py"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A saved tiny model, 40 objects as files, 40 as sheets."""
    folder = tmp_path_factory.mktemp("multi view")
    tokenizer = load_tokenizer(tiny_tokenizer_folder(folder / "tokenizer"))
    model = tiny_model(seed=3, max_position_embeddings=2048)
    save_model(folder / "model", model, model.config, tokenizer)
    for view in (0, 1, 4, 5):
        (folder / f"Cap3D_imgs_view{view}").mkdir()
        for number in range(40):
            tiny_image(10 * number + view, (40, 40)).save(folder / f"Cap3D_imgs_view{view}" / f"o{number}.png")
    (folder / "sheets").mkdir()
    for number in range(40):
        tiny_image(number, (40, 40)).save(folder / "sheets" / f"{number}.png")
    (folder / "objects.csv").write_text("".join(f"o{n},an object\n" for n in range(40)), encoding="utf-8")
    rows = [{"image_pth": f"{n}.png", "n": n} for n in range(40)]
    (folder / "sheets.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def command(home, name, out, *more):
    inputs = {"obj": ("objects.csv", "."), "syn": ("sheets.json", "sheets")}[name]
    tool = ROOT / "tools" / f"mv_llava_batch_infer_{name}.py"
    flags = {"model-path": "model", "input": inputs[0], "image-root": inputs[1], "output-dir": out,
             "max-new-tokens": 4, "device": "cpu", "batch-size": 2, "contact-sheet": 2}  # fmt: skip
    return [sys.executable, str(tool), *(str(part) for key in flags for part in (f"--{key}", flags[key])), *more]


def finish(home, *arguments):
    return subprocess.run(arguments, cwd=home, capture_output=True, text=True, timeout=120)


def kill_after(home, lines, *arguments, number=signal.SIGKILL):
    """Send the signal as soon as its journal has so many lines (the first one are the settings)."""
    out = Path(arguments[arguments.index("--output-dir") + 1])
    with open(home / "said", "w", encoding="utf-8") as said:
        process = subprocess.Popen(arguments, cwd=home, stdout=subprocess.DEVNULL, stderr=said)
    journal = home / out / "all.json.journal"
    while process.poll() is None:
        if journal.is_file() and journal.read_bytes().count(b"\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.002)
    return process.wait()


@pytest.mark.usefixtures("usual_signals")
def test_a_killed_run_goes_on_to_the_same_file(home):
    done = finish(home, *command(home, "obj", "straight"))
    assert done.returncode == 0, done.stderr
    assert "40 of 40 objects" in done.stdout
    assert kill_after(home, 6, *command(home, "obj", "killed")) == -signal.SIGKILL
    assert not (home / "killed" / "all.json").exists()
    # SIGTERM ends it quietly: without paddle's trace, and with the shell's exit code.
    assert kill_after(home, 12, *command(home, "obj", "killed"), number=signal.SIGTERM) == 143
    assert "Traceback" not in (home / "said").read_text()
    assert "FatalError" not in (home / "said").read_text()
    assert finish(home, *command(home, "obj", "killed")).returncode == 0
    assert (home / "killed" / "all.json").read_bytes() == (home / "straight" / "all.json").read_bytes()
    assert sorted(path.name for path in (home / "killed").iterdir()) == ["all.json", "all.png"]
    records = json.loads((home / "straight" / "all.json").read_text(encoding="utf-8"))
    assert set(records[0]) - {"unknown"} == {"id", "desciption", "caption", "score", "level", "style"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_again_and_again_at_random_gives_the_same_file(home):
    assert finish(home, *command(home, "syn", "syn straight")).returncode == 0
    draw, kills, lines = random.Random(1), 0, 2
    while lines < 20:
        kills += kill_after(home, lines, *command(home, "syn", "syn killed")) == -signal.SIGKILL
        lines += draw.randint(1, 5)
    assert kills > 2
    assert finish(home, *command(home, "syn", "syn killed")).returncode == 0
    assert (home / "syn killed" / "all.json").read_bytes() == (home / "syn straight" / "all.json").read_bytes()


def test_a_part_has_a_file_of_its_own_and_underscores_work(home):
    flags = ("--split_index=1", "--num_splits", "4")
    assert finish(home, *command(home, "syn", "parts", *flags)).returncode == 0
    records = json.loads((home / "parts" / "1.json").read_text(encoding="utf-8"))
    assert [record["n"] for record in records] == list(range(10, 20))
    again = finish(home, *command(home, "syn", "parts", *flags))
    assert (again.returncode, again.stdout) == (0, "parts/1.json is there already; --restart makes it anew\n")
    # A kill between the result and its image, or its journal.
    (home / "parts" / "1.png").unlink()
    (home / "parts" / "1.json.journal").write_bytes(b"{}\n")
    assert "parts/1.png: 2 objects" in finish(home, *command(home, "syn", "parts", *flags)).stdout
    assert sorted(path.name for path in (home / "parts").iterdir()) == ["1.json", "1.png"]


@pytest.mark.parametrize("flags", [("--num-splits", "4"), ("--num-splits", "0", "--split-index", "0")])
def test_a_number_of_parts_without_a_part_is_an_error(home, flags):
    done = finish(home, *command(home, "syn", "wrong", *flags))
    assert done.returncode == 2
    assert done.stderr.startswith("error: --num-splits wants a whole number from 1, and --split-index")


def test_a_wrong_template_is_told_before_the_model_is_read(home):
    done = finish(home, *command(home, "syn", "wrong", "--template", "share4v_v2"))
    assert done.returncode == 2
    assert done.stderr.startswith('error: unknown template "share4v_v2"')


def annotator(home, **decoding):
    return Annotator.load(str(home / "model"), decoding=Decoding(max_new_tokens=4, **decoding), device="cpu")


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_batch_equals_each_object_alone(home, temperature):
    asker = annotator(home, temperature=temperature, seed=5)
    objects = [[tiny_image(10 * number + view, (40, 40)) for view in range(4)] for number in range(3)]
    together = asker.answers(OBJ, objects, [7, 8, 9])
    assert together == [
        asker.answers(OBJ, [views], [number])[0] for views, number in zip(objects, (7, 8, 9), strict=True)
    ]
    assert len({tuple(answers) for answers in together}) == 3


def test_turns_equal_those_of_a_chat(home):
    from paddlemix.generation.load import load_chat

    views = [tiny_image(view, (40, 40)) for view in range(4)]
    (answers,) = annotator(home).answers(OBJ, [views])
    chat = load_chat(str(home / "model"), device="cpu", conv_mode="v1", decoding=Decoding(max_new_tokens=4))
    said = [chat.answer(OBJ.prompt(turn, 4), views if turn == 0 else ()) for turn in range(5)]
    assert answers == said


def test_the_chat_takes_files_or_a_sheet(home):
    def chat(*flags):
        common = ("--model-path", "model", "--device", "cpu", "--temperature", "0", "--max-new-tokens", "5")
        return finish(home, sys.executable, str(CHAT), *common, "--question", "what?", "--question", "why?", *flags)

    from PIL import Image

    from paddlemix.imaging.views import split_sheet

    views = split_sheet(Image.open(home / "sheets" / "1.png"))
    for number, view in enumerate(views):
        view.save(home / f"view{number}.png")
    by_sheet = chat("--sheet", "sheets/1.png")
    by_files = chat("--image-file", *(f"view{number}.png" for number in range(4)))
    assert by_sheet.returncode == 0, by_sheet.stderr
    assert by_sheet.stdout == by_files.stdout
    assert by_sheet.stdout.count("\n") == 2, "piped, the answers alone"
    alone = chat("--image-file", "view0.png")
    repeated = chat("--image-file", *["view0.png"] * 4)
    assert alone.stdout == repeated.stdout != by_sheet.stdout
    assert chat().returncode == 2
    # A question with more views than the model holds is the end of a command that has no other questions.
    full = chat("--sheet", "sheets/1.png", "--grid", "40")
    assert (full.returncode, full.stderr.count("positions of the model's context")) == (2, 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--sheet", "SHEET", "--grid", "0"), "a sheet of 0 x 0 views"),
        (("--sheet", "OBLONG"), "oblong.png: a sheet of 2 x 2 views must be square .* has 30 x 40"),
        (("--sheet", "SHEET", "--repeat", "2"), "--repeat is for a lone --image-file"),
        (("--image-file", "SHEET", "--grid", "2"), "--grid and --sheet-order are for a --sheet"),
        (("--image-file", "SHEET", "--sheet-order", "reading"), "--grid and --sheet-order are for a --sheet"),
        (("--image-file", "SHEET", "SHEET", "--repeat", "4"), "one --image-file"),
        (("--image-file", "SHEET", "--repeat", "0"), "--repeat is 0"),
    ],
)
def test_wrong_views_are_told_before_the_model_is_read(home, capsys, flags, words):
    from paddlemix.examples.mv_llava.run_predict_multiview import main

    tiny_image(0, (30, 40)).save(home / "oblong.png")
    files = {"SHEET": str(home / "sheets" / "1.png"), "OBLONG": str(home / "oblong.png")}
    assert main(["--model-path", "nowhere", *(files.get(flag, flag) for flag in flags)]) == 2
    assert re.search(words, capsys.readouterr().err)


def test_answers_never_outgrow_the_context(home):
    asker = annotator(home)
    views = [[tiny_image(view, (40, 40)) for view in range(4)]]
    seen = [[asker.predictor.picture(view) for view in own] for own in views]
    assert asker._fitting(OBJ, seen).max_new_tokens == 4
    asker.decoding = asker.decoding.with_changes(max_new_tokens=5000)
    limit = asker._fitting(OBJ, seen).max_new_tokens
    assert 100 < limit < 2048 / 5
    # With answers as long as allowed, every one may still be read back as some tokens more than were generated.
    asked = asker.predictor.context - len(OBJ.questions) * (limit + 8)
    texts = [Message(role, text) for turn in range(len(OBJ.questions))
             for role, text in (("user", OBJ.prompt(turn, 4)), ("assistant", "-"))]  # fmt: skip
    needed = asker.predictor.prompt(texts[:-1], seen[0]).length
    assert 0 <= asked - needed < len(OBJ.questions)


def test_views_that_fill_the_context_are_an_error(home):
    asker = annotator(home)
    with pytest.raises(DataError, match="but the model holds 2048; nothing is left for answers"):
        asker.answers(OBJ, [[tiny_image(0, (40, 40))] * 600])
