# SPDX-License-Identifier: Apache-2.0
"""run_predict_multiround.py: flags, the ways a chat ends, and what a person sees."""

import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.generation import terminal
from paddlemix.generation.load import load_chat
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession
from paddlemix.generation.terminal import COMMANDS, Chat, split_names
from paddlemix.imaging.load import load_image
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import dashed
from tests.tiny import tiny_image, tiny_model, tiny_tokenizer_folder

ROOT = Path(__file__).resolve().parents[2]
COMMAND = ROOT / "paddlemix" / "examples" / "llava" / "run_predict_multiround.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model and two images, in a folder whose name holds a space and letters beyond ASCII."""
    home = tmp_path_factory.mktemp("chat modèle 图")
    tokenizer = load_tokenizer(tiny_tokenizer_folder(home / "tokenizer"))
    model = tiny_model(seed=3)
    save_model(home / "model", model, model.config, tokenizer)
    for kind in range(2):
        tiny_image(kind).save(home / f"image {kind}.png")
    return home


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The command's names, without a process of its own."""
    monkeypatch.setattr(sys, "path", ["replaced", *sys.path])
    monkeypatch.setattr(terminal, "quiet", lambda *names: None)  # it would last for the tests that follow
    return runpy.run_path(str(COMMAND), run_name="chat_command")


@pytest.fixture
def session(folder: Path) -> ChatSession:
    return load_chat(str(folder / "model"), device="cpu", decoding=Decoding(max_new_tokens=6))


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def talk(session: ChatSession, *pictures: Any, debug: bool = False) -> int:
    return Chat(session, pictures, load_image, debug=debug).talk()


def run(folder: Path, *flags: str, typed: str = "", **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(COMMAND), *flags],
        input=typed,
        capture_output=True,
        text=True,
        encoding="utf-8",
        cwd=folder,
        timeout=100,
        **more,
    )


def test_a_piped_chat_from_another_folder_streams_answers_and_ends_with_the_input(folder: Path) -> None:
    done = run(
        folder,
        *("--model_path", "model", "--image-file", "image 0.png", "image 1.png", "--temperature", "0"),
        *("--max_new", "6", "--device", "cpu"),
        typed="what is shown?\nwhy?\n",
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr
    greedy = load_chat(str(folder / "model"), device="cpu", decoding=Decoding(max_new_tokens=6))
    answers = ["".join(greedy.ask("what is shown?", [folder / "image 0.png", folder / "image 1.png"]))]
    answers.append("".join(greedy.ask("why?")))
    assert done.stdout == "".join(f"{answer}\n" for answer in answers)
    (line,) = [" ".join(done.stderr.split())]
    assert line.startswith("model: device cpu: as asked; float32: the dtype of a CPU; template vicuna_v1; 4 tokens")
    assert line.endswith("an image (pad)"), "nothing else is said"


@pytest.mark.usefixtures("usual_signals")
def test_ctrl_c_at_the_prompt_ends_the_chat_with_exit_code_0(folder: Path) -> None:
    """A person types, and the answers go to a pipe: the prompts are on stderr."""
    keyboard, terminal = os.openpty()
    process = subprocess.Popen(
        [sys.executable, str(COMMAND), "--model-path", str(folder / "model"), "--device", "cpu"],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    seen = b""
    while not seen.endswith(b"USER: "):
        byte = process.stderr.read(1)
        assert byte, seen.decode()
        seen += byte
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    os.close(keyboard)
    os.close(terminal)
    assert process.returncode == 0
    assert b"Traceback" not in errors
    assert out == b""
    assert b"/help shows what can be typed" in seen


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--image-file", "absent.png"), "absent.png: no such image file"),
        (("--image-file", "absent.png,other.png"), "absent.png: no such image file"),
        (("--load-8bit", "--load-bits", "4"), "--load-8bit and --load-bits 4 are two answers to one question"),
        (("--image-file", "http://127.1/a.png"), "127.0.0.1, which is not a public address"),
        (("--image-file", "http://[::1/x"), "http://[::1/x: not an address"),
        (("--conv-mode", "llava_v3"), 'unknown template "llava_v3", did you mean "llava_v1"?'),
        (("--temperature", "-1"), "temperature is -1.0: expected 0 (greedy) or a positive number"),
        (("--num-beams", "2", "--temperature", "0.2"), "beam search is not random; use temperature 0"),
    ],
)
def test_a_wrong_flag_is_one_line_with_exit_code_2_before_paddle_is_loaded(
    command: dict[str, Any], flags: tuple[str, ...], text: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    # With None in its place, an import of the module raises.
    monkeypatch.setitem(sys.modules, "paddlemix.generation.load", None)
    assert command["main"](["--model-path", "absent", *flags]) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert text in errors
    assert errors.count("\n") == 1


def test_private_hosts_are_read_with_their_flag_only(
    command: dict[str, Any], folder: Path, session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from paddlemix.imaging import load

    asked = []

    def fetch(url: str, *limits: Any, private: bool) -> bytes:
        asked.append(private)
        return (folder / "image 0.png").read_bytes()

    monkeypatch.setattr(load, "fetch", fetch)
    for private in (False, True):
        type_in(monkeypatch, "/image http://camera.local/a.png\n")
        flags = ["--model-path", str(folder / "model"), "--device", "cpu", *["--allow-private-hosts"] * private]
        assert command["main"](flags) == 0
    flags = ["--model-path", str(folder / "model"), "--device", "cpu", "--image-file", "http://camera.local/a.png"]
    type_in(monkeypatch, "")
    assert command["main"]([*flags, "--allow-private-hosts"]) == 0
    assert asked == [False, True, True]


def test_a_model_that_is_not_there_is_exit_code_2_and_names_the_places(command: dict[str, Any], capsys: Any) -> None:
    assert command["main"](["--model-path", "owner/absent", "--device", "cpu"]) == 2
    assert 'the model "owner/absent" is not on this machine; looked for' in capsys.readouterr().err


def test_pictures_for_a_model_without_a_tower_are_refused_before_the_chat(
    command: dict[str, Any], folder: Path, tmp_path: Path, capsys: Any
) -> None:
    blind = tiny_model(vision=None, image=None)
    save_model(tmp_path / "blind", blind, blind.config, load_tokenizer(folder / "model"))
    flags = ["--model-path", str(tmp_path / "blind"), "--image-file", str(folder / "image 0.png"), "--device", "cpu"]
    assert command["main"](flags) == 2
    assert "has no vision tower; leave --image-file out" in capsys.readouterr().err


def test_underscores_and_prefixes_of_flags_are_taken(command: dict[str, Any]) -> None:
    typed = ["--model_path=a_b", "--image_file", "x_1.png", "--max_new_tokens", "7", "--temp", "0", "--conv_m", "v1"]
    args = command["parser"]().parse_args(dashed(typed))
    assert (args.model_path, args.image_file, args.max_new_tokens) == ("a_b", [["x_1.png"]], 7)
    assert (args.temperature, args.conv_mode) == (0.0, "v1")


def test_the_spellings_of_llava_are_taken(command: dict[str, Any]) -> None:
    typed = ["--model-path", "a", "--model-base", "b", "--image-file", "a.png,b.png", "--query", "what?", "--sep", ","]
    args = command["parser"]().parse_args(typed)
    assert (args.model_path, args.base, args.query) == ("a", "b", ["what?"])
    assert command["parser"]().parse_args(["--model", "a"]).model_path == "a"


def test_names_in_one_word_are_separated_but_not_a_name_that_holds_the_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.png").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert split_names("a,b.png") == ["a,b.png"]
    assert split_names("~/a,b.png") == ["~/a,b.png"]
    assert split_names("a.png,b.png") == ["a.png", "b.png"]
    assert split_names("a.png;b,c.png", ";") == ["a.png", "b,c.png"]
    assert split_names("https://x.org/a,b.png") == ["https://x.org/a,b.png"]
    assert split_names("https://x.org/a.png,http://y.org/b.png") == ["https://x.org/a.png", "http://y.org/b.png"]


def test_several_pictures_may_follow_one_flag_or_several(command: dict[str, Any]) -> None:
    args = command["parser"]().parse_args(["--image-file", "a", "b", "--image-file", "c"])
    assert args.image_file == [["a", "b"], ["c"]]


def test_the_defaults_are_those_of_the_command_that_users_know(command: dict[str, Any]) -> None:
    args = command["parser"]().parse_args([])
    # None, so that the default is asked about before 13.5 GB are downloaded.
    assert (args.model_path, command["DEFAULT_MODEL"]) == (None, "paddlemix/llava/llava-v1.5-7b")
    assert (args.max_new_tokens, args.fp16, args.debug, args.conv_mode) == (512, False, False, None)
    assert terminal.DEFAULT_TEMPERATURE == 0.2


def test_an_empty_line_ends_the_chat(
    command: dict[str, Any], session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    type_in(monkeypatch, "why?\n  \nnever asked\n")
    assert talk(session) == 0
    assert len(session.turns) == 1
    assert capsys.readouterr().out == f"{session.turns[0].answer}\n"


@pytest.mark.parametrize("word", ["/exit", "/quit"])
def test_exit_and_quit_end_the_chat(
    word: str, session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    type_in(monkeypatch, f"/help\n{word}\nnever asked\n")
    assert talk(session) == 0
    out, errors = capsys.readouterr()
    assert (out, session.turns) == ("", [])
    assert all(word in errors for word in COMMANDS)


def test_a_person_at_a_terminal_sees_who_speaks(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(terminal, "_is_terminal", lambda stream: True)
    lines = iter(["why?", "/exit"])
    monkeypatch.setattr("builtins.input", lambda prompt: sys.stdout.write(prompt) and next(lines))
    assert talk(session) == 0
    assert capsys.readouterr().out == f"USER: ASSISTANT: {session.turns[0].answer}\nUSER: "


def test_a_command_that_was_misspelt_is_not_asked_and_a_path_in_a_question_is(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    type_in(monkeypatch, "/imge a.png\n/image\n/image 'a.png\n/etc/passwd what?\n")
    assert talk(session) == 0
    assert [turn.text for turn in session.turns] == ["/etc/passwd what?"]
    errors = capsys.readouterr().err
    assert 'unknown command /imge, did you mean "/image"?' in errors
    assert "/image needs the path or the address of an image" in errors
    assert "/image 'a.png: No closing quotation" in errors


def test_one_query_is_answered_without_an_input(
    command: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    flags = ["--model-path", str(folder / "model"), "--device", "cpu", "--temperature", "0", "--max-new-tokens", "6"]
    assert command["main"](flags) == 2
    assert "the standard input is closed, so nobody can ask; give --query TEXT" in capsys.readouterr().err
    assert command["main"]([*flags, "--query", "why?", "--query", "what?"]) == 0
    fresh = load_chat(str(folder / "model"), device="cpu", decoding=Decoding(max_new_tokens=6))
    assert capsys.readouterr().out == "".join(f"{''.join(fresh.ask(text))}\n" for text in ("why?", "what?"))


@pytest.mark.parametrize("module", ["llava.run_predict_multiround", "mv_llava.run_predict_multiview"])
@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_query_is_refused_before_anything_is_loaded(module: str, text: str, capsys: Any) -> None:
    parser = importlib.import_module(f"paddlemix.examples.{module}").parser()
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["--model-path", "none", "--query", text])
    assert ended.value.code == 2
    assert "the question is empty; write one, or leave the flag out" in capsys.readouterr().err


def test_an_input_that_cannot_be_read_is_one_line_with_exit_code_2(
    session: ChatSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    with open(tmp_path / "output", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdin", stream)
        assert run_command(lambda argv: talk(session), []) == 2
    assert "questions cannot be read from the standard input (not readable); give --query" in capsys.readouterr().err


def test_a_picture_can_come_later_and_the_conversation_can_begin_anew(
    command: dict[str, Any], session: ChatSession, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    later = folder / "image 1.png"
    lines = ["what?", "/image absent.png", f"/image {later}", "this?", f'/image "{later}" "{later}"', "those?", "why?"]
    type_in(monkeypatch, "\n".join(lines) + "\n")
    assert talk(session, tiny_image(0)) == 0
    assert [len(turn.pictures) for turn in session.turns] == [1, 1, 2, 0]
    assert capsys.readouterr().err.startswith("error: absent.png: no such image file")
    type_in(monkeypatch, "/reset\nwhy?\n")
    assert talk(session) == 0
    assert [turn.text for turn in session.turns] == ["why?"]


def interrupt_after(pieces: Iterator[str], count: int) -> Iterator[str]:
    try:
        for _ in range(count):
            yield next(pieces)
        raise KeyboardInterrupt
    finally:
        pieces.close()


def test_ctrl_c_during_an_answer_stops_the_answer_only(
    command: dict[str, Any], session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ask, begun = session.ask, []

    def interrupted(text: str, images: Any = ()) -> Iterator[str]:
        begun.append(text)
        pieces = ask(text, images)
        return interrupt_after(pieces, 2) if len(begun) == 1 else pieces

    monkeypatch.setattr(session, "ask", interrupted)
    type_in(monkeypatch, "what?\nwhy?\n")
    assert talk(session, tiny_image(0)) == 0
    assert [turn.text for turn in session.turns] == ["what?", "why?"]
    assert session.turns[0].answer
    assert session.turns[0].pictures
    assert "(stopped)" in capsys.readouterr().err


def test_pictures_wait_for_the_next_question_when_one_could_not_be_asked(
    command: dict[str, Any], session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    type_in(monkeypatch, "why " * 600 + "\nwhat?\n")
    assert talk(session, tiny_image(0)) == 0
    assert [len(turn.pictures) for turn in session.turns] == [1]
    assert "of the 512 positions of the model's context" in capsys.readouterr().err


def test_debug_shows_the_prompt_and_what_was_reused(
    command: dict[str, Any], session: ChatSession, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    type_in(monkeypatch, "what?\nwhy?\n")
    talk(session, tiny_image(0), debug=True)
    errors = capsys.readouterr().err
    assert 'USER: <image>\\nwhat? ASSISTANT:"' in errors
    assert "of which reused 0; images encoded 1; tokens generated 6" in errors
    assert "images encoded 0; tokens generated 6" in errors


class _Person:
    """A terminal at which somebody types one line."""

    def __init__(self, typed: str, is_terminal: bool = True) -> None:
        self.typed, self.is_terminal = typed, is_terminal

    def isatty(self) -> bool:
        return self.is_terminal

    def readline(self) -> str:
        return self.typed


@pytest.mark.parametrize(
    ("typed", "text"), [("\n", "nothing is downloaded; give --model-path"), ("n\n", "nothing is downloaded")]
)
def test_the_default_model_is_downloaded_after_a_yes_only(typed, text, monkeypatch, tmp_path, capsys):
    from paddlemix.examples.llava import run_predict_multiround as command

    monkeypatch.setenv("PPMIX_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.sys, "stdin", _Person(typed))
    with pytest.raises(ConfigError, match=text):
        command._default_model()
    assert "about 14 GB" in capsys.readouterr().err
    monkeypatch.setattr(command.sys, "stdin", _Person("yes\n"))
    assert command._default_model() == command.DEFAULT_MODEL
    monkeypatch.setattr(command.sys, "stdin", _Person("yes\n", is_terminal=False))
    with pytest.raises(ConfigError, match="no --model-path is given.*to download it"):
        command._default_model()
