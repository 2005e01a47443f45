# SPDX-License-Identifier: Apache-2.0
"""deploy/llava: PaddleMIX's commands as they are written there, and what they say when something is wrong."""

import io
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.export.static_kit import Twins
from tests.tiny import tiny_image

DEPLOY = Path(__file__).resolve().parents[2] / "deploy" / "llava"


@pytest.fixture(autouse=True)
def same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="module")
def run() -> Any:
    """``main`` of run_static_predict.py."""
    return runpy.run_path(str(DEPLOY / "run_static_predict.py"))["main"]


@pytest.fixture(scope="module")
def export() -> Any:
    """``main`` of export_model.py."""
    return runpy.run_path(str(DEPLOY / "export_model.py"))["main"]


@pytest.fixture
def image(tmp_path: Path) -> str:
    tiny_image(1, (60, 40)).save(tmp_path / "a picture.png")
    return str(tmp_path / "a picture.png")


def parts(twins: Twins) -> list[str]:
    """The paths as PaddleMIX's README writes them."""
    first, second = twins.export / "encode_image" / "clip", twins.export / "encode_text" / "llama"
    return ["--first_model_path", str(first), "--second_model_path", str(second)]


def test_questions_come_from_stdin_and_answers_alone_go_to_stdout(
    twins: Twins, run: Any, image: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f'what is this?\nand now?\n/image "{image}"\nwhich one?\n\n'))
    more = ["--image_file", image, "--model_name_or_path", "paddlemix/llava/llava-v1.5-7b", "--fp16", "--seed", "0"]
    assert run([*parts(twins), *more, "--device", "cpu", "--max_new_tokens", "5", "--temperature", "0"]) == 0
    said = capsys.readouterr()
    assert said.out.count("\n") >= 3
    assert "float16 was asked for, but a CPU computes in float32 only" in said.err
    assert "--model_name_or_path paddlemix/llava/llava-v1.5-7b is not read" in said.err
    assert "static graphs of paddle" in said.err


def test_the_benchmark_says_how_long_each_part_takes(twins: Twins, run: Any, image: str, capsys: Any) -> None:
    assert run([*parts(twins), "--image_file", image, "--benchmark", "--device", "cpu", "--max-new-tokens", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 image(s), ")
    assert "3 tokens; median of 10 answers" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["images", "first", "each", "Time:"]


def test_the_benchmark_times_beams_as_a_whole_and_refuses_answers_beyond_the_context(
    twins: Twins, run: Any, capsys: Any
) -> None:
    given = [*parts(twins)[2:], "--benchmark", "--device", "cpu"]
    assert run([*given, "--max-new-tokens", "3", "--num-beams", "2", "--temperature", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["images", "2", "Time:"]
    assert run([*given, "--max-new-tokens", "600"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    found = re.search(r"max_new_tokens is 600: the context has 512 positions.*; give at most (\d+)", told)
    assert run([*given, "--max-new-tokens", str(int(found[1]) + 1)]) == 2


def test_one_question_by_a_flag_is_answered_as_by_the_dynamic_model(twins: Twins, run: Any, capsys: Any) -> None:
    more = ["--query", "how many?", "--temperature", "0", "--max-new-tokens", "6", "--device", "cpu"]
    assert run([*parts(twins)[2:], *more]) == 0
    from paddlemix.generation.sampling import Decoding
    from paddlemix.generation.session import ChatSession

    answer = ChatSession(twins.dynamic, decoding=Decoding(max_new_tokens=6)).answer("how many?")
    assert capsys.readouterr().out.strip() == answer


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--device", "xpu"], 'device "xpu": expected cpu, gpu'),
        (["--temperature", "-1"], "temperature is -1"),
        (["--conv_mode", "none_such"], "none_such"),
        (["--second_model_path", "/nowhere"], "--second_model_path: /nowhere: holds no exported encode_text"),
        (
            ["--second_model_path", "OUT/encode_text/TYPO"],
            "--second_model_path: OUT/encode_text/TYPO: there is no graph",
        ),
        (["--second_model_path", "OUT/encode_text/clip"], "of this name; give OUT/encode_text/llama"),
        (
            ["--first_model_path", "OUT/encode_image/TYPO"],
            "--first_model_path: OUT/encode_image/TYPO: there is no graph",
        ),
        (["--first_model_path", "OUT/encode_text/llama"], "this is encode_text; encode_image was expected here"),
    ],
)
def test_what_cannot_be_used_ends_with_code_2_and_one_line(
    twins: Twins, run: Any, flags: list[str], said: str, capsys: Any
) -> None:
    assert run([*parts(twins), "--query", "x", *(word.replace("OUT", str(twins.export)) for word in flags)]) == 2
    error = capsys.readouterr().err
    assert said.replace("OUT", str(twins.export)) in error
    assert "Traceback" not in error


@pytest.mark.parametrize("end", ["", "encode_text", "encode_text/llama.json", "encode_text/llama.pdmodel"])
def test_a_graph_is_named_by_its_folder_or_by_its_files(twins: Twins, run: Any, end: str) -> None:
    more = ["--query", "x", "--device", "cpu", "--max-new-tokens", "1"]
    assert run(["--second_model_path", str(twins.export / end), *more]) == 0


def test_a_path_that_a_shell_left_empty_is_an_error(twins: Twins, run: Any, export: Any, capsys: Any) -> None:
    given = [
        (run, [*parts(twins), "--second_model_path", ""]),
        (run, [*parts(twins), "--first_model_path", " "]),
        (export, ["--model_name_or_path", str(twins.folder), "--save_path", ""]),
    ]
    for command, flags in given:
        with pytest.raises(SystemExit) as ended:
            command(flags)
        assert ended.value.code == 2
        assert "the path is empty" in capsys.readouterr().err


def test_images_want_the_first_path(twins: Twins, run: Any, image: str, capsys: Any) -> None:
    assert run([*parts(twins)[2:], "--query", "x", "--image_file", image]) == 2
    assert "give --first_model_path" in capsys.readouterr().err


def test_one_part_is_written_and_as_onnx_when_asked(twins: Twins, export: Any, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnxruntime")
    given = ["--model_name_or_path", str(twins.folder), "--save_path", str(tmp_path / "out"), "--device", "cpu"]
    assert export([*given, "--encode_image", "--fp16", "--onnx"]) == 0
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["encode_image"]
    files = {item.name for item in (tmp_path / "out" / "encode_image").iterdir()}
    assert files >= {"clip.json", "clip.pdiparams", "clip.onnx", "export.json", "manifest.json", "config.json"}
    said = capsys.readouterr()
    assert "float32, for cpu" in said.out
    assert "in onnxruntime" in said.out
    assert "float16 was asked for" in said.err


def test_siglips_activation_is_the_same_function_as_onnx(export: Any, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnxruntime")
    folder = Path(__file__).resolve().parents[1] / "data" / "onevision" / "onevision"
    given = ["--model-name-or-path", str(folder), "--save-path", str(tmp_path / "out"), "--device", "cpu"]
    assert export([*given, "--encode-image", "--onnx"]) == 0
    assert "in onnxruntime" in capsys.readouterr().out
    assert not [item for item in (tmp_path / "out" / "encode_image").iterdir() if item.is_dir()]


def test_an_export_that_cannot_be_ends_with_code_2_and_writes_nothing(
    twins: Twins, export: Any, tmp_path: Path, capsys: Any
) -> None:
    target = ["--save_path", str(tmp_path / "out"), "--device", "cpu"]
    assert export(["--model_name_or_path", str(tmp_path / "none"), *target]) == 2
    assert export(["--model_name_or_path", str(twins.folder), *target, "--encode_text", "--onnx"]) == 2
    assert "--onnx: is about tower and projector" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "a file").write_text("x")
    for path in (tmp_path / "a file", tmp_path / "a file" / "below"):
        assert export(["--model-name-or-path", str(twins.folder), "--save-path", str(path), "--device", "cpu"]) == 2
        assert f"{tmp_path / 'a file'}: is a file; choose another --save-path" in capsys.readouterr().err
    (tmp_path / "out" / "encode_text").mkdir(parents=True)
    thesis = tmp_path / "out" / "encode_text" / "thesis.txt"
    thesis.write_text("years of work")
    assert export(["--model_name_or_path", str(twins.folder), *target]) == 2
    assert "encode_text: is there, and no export (export.json is missing)" in capsys.readouterr().err
    assert [item.name for item in (tmp_path / "out").rglob("*")] == ["encode_text", "thesis.txt"]


def test_flags_that_graphs_cannot_follow_are_unknown(twins: Twins, run: Any, export: Any, capsys: Any) -> None:
    commands = [(run, parts(twins)), (export, ["--model_name_or_path", str(twins.folder), "--save_path", "/nowhere"])]
    for command, given in commands:
        with pytest.raises(SystemExit) as ended:
            command([*given, "--load-bits", "8"])
        assert ended.value.code == 2
        assert "unrecognized arguments: --load-bits" in capsys.readouterr().err
