# SPDX-License-Identifier: Apache-2.0
"""Flags that several commands have are the same everywhere."""

import argparse

import pytest

from paddlemix.eval.__main__ import parser as eval_parser
from paddlemix.examples.llava import run_predict_multiround as chat
from paddlemix.examples.mv_llava import run_predict_multiview as multiview
from paddlemix.tools import convert_weights, doctor, merge_lora_params
from paddlemix.utils.options import opening
from tools import mv_llava_batch

PARSERS = {
    "chat": chat.parser,
    "multiview": multiview.parser,
    "merge": merge_lora_params.parser,
    "convert": convert_weights.parser,
    "doctor": doctor.parser,
    "objects": lambda: mv_llava_batch.parser("obj", ""),
    "sheets": lambda: mv_llava_batch.parser("syn", ""),
}
ASKING = ("chat", "multiview", "objects", "sheets")


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {action.dest: action for action in parser._actions}


@pytest.mark.parametrize(
    ("name", "commands"),
    [
        ("vision_tower", tuple(PARSERS)),
        ("projector", tuple(PARSERS)),
        ("base", tuple(name for name in PARSERS if name != "merge")),
        *((name, ASKING) for name in ("device", "fp16", "max_new_tokens", "model_path")),
    ],
)
def test_a_flag_of_several_commands_is_one_flag(name, commands):
    found = [flags(PARSERS[command]())[name] for command in commands]
    shapes = {(action.type, action.nargs, action.metavar, type(action)) for action in found}
    texts = {action.help.partition(" (")[0] for action in found}
    assert len(shapes) == 1
    assert name == "model_path" or len(texts) == 1, texts


@pytest.mark.parametrize("command", ASKING)
def test_what_opens_a_model_comes_from_the_flags(command):
    words = {"model_path": "m", "base": "b", "vision_tower": "v", "projector": "p", "device": "cpu", "input": "i.json"}
    parser = PARSERS[command]()
    known = flags(parser)
    given = [part for name, value in words.items() if name in known
             for part in (f"--{name.replace('_', '-')}", value)]  # fmt: skip
    expected = {"base": "b", "vision_tower": "v", "projector": "p", "device": "cpu"}
    assert opening(parser.parse_args(given)) == {**expected, "dtype": None, "bits": None}
    more = opening(parser.parse_args([*given, "--fp16", "--load-bits", "4"]))
    assert more == {**expected, "dtype": "float16", "bits": 4}


@pytest.mark.parametrize("command", ASKING)
def test_the_defaults_of_answers_are_the_documented_ones(command):
    found = flags(PARSERS[command]())
    assert found["max_new_tokens"].default == 512
    assert found["top_p"].default == (0.7 if command == "multiview" else 1.0)
    assert found["temperature"].default == (None if command == "chat" else 0.2)
    for name in ("top_p", "max_new_tokens"):
        assert f"default {found[name].default:g}" in found[name].help


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("chat", ["--temprature", "0.5"], 'unrecognized arguments: --temprature 0.5, did you mean "--temperature"?'),
        ("chat", ["--image=x", "--xyzzy=1"], "unrecognized arguments: --xyzzy=1\n"),
        ("convert", ["--src", "a", "--dst", "b", "--to", "own", "--bitz=8"], 'did you mean "--bits"?'),
        ("eval", ["report", "a", "--publishd"], 'did you mean "--published"?'),
        ("eval", ["report", "a", "--num-chunks", "2"], "unrecognized arguments: --num-chunks 2\n"),
    ],
)
def test_an_unknown_flag_names_the_nearest_one(command, arguments, told, capsys):
    parser = {**PARSERS, "eval": eval_parser}[command]()
    with pytest.raises(SystemExit) as found:
        parser.parse_args(["--model-path", "m", *arguments] if command == "chat" else arguments)
    assert found.value.code == 2
    assert told in capsys.readouterr().err
