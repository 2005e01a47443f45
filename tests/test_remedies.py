"""What an error offers is a flag or a key of the very command that shows it."""

import ast
import functools
import importlib
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from paddlemix.settings.run.training import ALIASES, KNOWN, TrainingSettings
from paddlemix.trainer.arguments import names_of_keys
from paddlemix.utils.commands import COMMANDS
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.options import PYTHON, Options, current, speaking

ROOT = Path(__file__).resolve().parents[1]
PARSERS = (
    "paddlemix.examples.llava.run_predict_multiround",
    "paddlemix.examples.mv_llava.run_predict_multiview",
    "paddlemix.tools.merge_lora_params",
    "paddlemix.tools.convert_weights",
    "paddlemix.tools.doctor",
    "paddlemix.tools.batch_predict",
    "paddlemix.serve.model_worker",
    "paddlemix.examples.mv_llava.app",
    "paddlemix.eval.__main__",
    "deploy.llava.export_model",
)
FLAG = re.compile(r"(?<![\w/-])--([a-z][a-z0-9_-]+)")
KEY = re.compile(r'"/?([a-z][a-z0-9_]+)": ')
ARGUMENT = re.compile(r"(?<![\w.{/-])(base|vision_tower|projector|dtype|lora|config|overrides|conv_mode|device)=(?!=)")
SHARED = ("annotate/batch.py", "annotate/objects.py", "annotate/objects_csv.py", "utils/journal.py")
"""Files whose errors come from the batch tools of MV-LLaVA alone."""


@functools.cache
def flags_of(module: str) -> set[str]:
    found = importlib.import_module(module)
    parsers = [found.parser()] if module != "tools.mv_llava_batch" else [found.parser(n, "") for n in ("obj", "syn")]
    for action in [action for parser in parsers for action in parser._actions]:
        parsers += action.choices.values() if isinstance(action.choices, dict) else ()  # of verbs
    return {text.lstrip("-") for parser in parsers for action in parser._actions for text in action.option_strings}


@pytest.mark.parametrize("module", [*PARSERS, "tools.mv_llava_batch"])
def test_what_a_command_offers_are_its_own_flags(module):
    options = importlib.import_module(module).OPTIONS
    offered = {name for phrase in asdict(options).values() if phrase for name in FLAG.findall(phrase)}
    assert offered
    assert offered <= flags_of(module)
    for needed in (options.base, options.vision_tower, options.projector):
        assert FLAG.search(needed)


@pytest.mark.parametrize("changes", [{}, {"lora_path": "x", "lora": True}])
def test_what_a_training_offers_are_its_own_keys(changes):
    options = names_of_keys(TrainingSettings().with_changes(**changes))
    offered = {name for phrase in asdict(options).values() if phrase for name in re.findall(r'"([a-z_]+)"', phrase)}
    assert offered - {"cpu"} <= set(KNOWN)
    assert ('"model_name_or_path"' in options.base) == bool(changes)


def test_the_arguments_that_python_is_offered_exist():
    import inspect

    from paddlemix.checkpoint.load import load_model
    from paddlemix.generation.predictor import Opening

    known = {*inspect.signature(load_model).parameters, *Opening.__annotations__}
    offered = {name for phrase in asdict(PYTHON).values() if phrase for name in re.findall(r"\b(\w+)=", phrase)}
    assert offered
    assert offered <= known


def test_a_command_speaks_of_its_own_flags_while_it_runs(capsys):
    options = Options("--b X", "--v X", "--p X")

    def fails(argv: list[str]) -> None:
        raise ConfigError(current().vision_tower)

    assert run_command(fails, [], options) == 2
    assert capsys.readouterr().err == "error: --v X\n"
    assert current() == PYTHON
    with speaking(options):
        assert current() == options


@functools.cache
def texts() -> list[tuple[str, str]]:
    """(file, text) of every string in the package that is no documentation."""
    found = []
    for path in sorted((ROOT / "paddlemix").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        documentation = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        name = path.relative_to(ROOT / "paddlemix").as_posix()
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                found.append((name, node.value))
    return found


OF_ONE = {
    "annotate/caption_rows.py": "tools.mv_llava_convert_captions",
    "eval/predicting.py": "paddlemix.tools.batch_predict",
    "serve/together.py": "paddlemix.examples.mv_llava.app",
}
"""Files whose errors come from one command alone."""


def allowed_flags(name: str) -> set[str]:
    """Flags that errors of a file may offer."""
    if name == "generation/terminal.py":
        return flags_of(PARSERS[0]) & flags_of(PARSERS[1])
    if name in OF_ONE:
        return flags_of(OF_ONE[name])
    module = f"paddlemix.{name.removesuffix('.py').replace('/', '.')}"
    if module in PARSERS:
        return flags_of(module)
    if name.startswith("validate/") or name == "tools/validate_data.py":
        return {*KNOWN, *ALIASES, "key", *flags_of("paddlemix.tools.validate_data")}
    if name.startswith(("trainer/", "settings/", "datasets/")) or name.endswith(
        ("supervised_finetune.py", "pretrain.py")
    ):
        return {*KNOWN, *ALIASES, "help", "key", "debug", "npus"}
    if name.startswith("serve/"):
        servers = ("controller", "model_worker", "gradio_web_server")
        return set.union(*(flags_of(f"paddlemix.serve.{server}") for server in servers))
    if name.startswith("eval/"):
        return flags_of("paddlemix.eval.__main__")
    if name.startswith("export/"):
        found = flags_of("deploy.llava.export_model") | flags_of("deploy.llava.run_static_predict")
        return {flag.replace("-", "_") for flag in found}
    if name in SHARED:
        return flags_of("tools.mv_llava_batch")
    return set()


COMMANDS_OF_OTHERS = ("demo/", "doctor/", "cli.py", "utils/commands.py", "__main__.py", "utils/options.py", "ops/npu/",
                      "ops/dispatch.py", "utils/entry_point.py")  # fmt: skip
"""Files that start or name other commands, with their flags."""


def test_no_error_of_a_shared_file_names_a_flag_of_one_command():
    assert len(texts()) > 3000
    wrong = [
        (name, flag)
        for name, text in texts()
        if not name.startswith(COMMANDS_OF_OTHERS)
        for flag in ([] if re.fullmatch(r"--[\w-]+", text) else FLAG.findall(text))  # a word of a command, no sentence
        if flag not in allowed_flags(name)
    ]
    assert wrong == []


def test_no_error_of_a_shared_file_names_an_argument_of_python():
    """But for calls that only Python can make."""
    only_python = {
        ("checkpoint/load.py", "lora"),
        ("checkpoint/sources.py", "config"),
        ("checkpoint/sources.py", "overrides"),
    }
    wrong = {(name, found) for name, text in texts() for found in ARGUMENT.findall(text)}
    assert (
        wrong - only_python - {("utils/options.py", found) for found in ARGUMENT.findall(str(asdict(PYTHON)))} == set()
    )


@pytest.mark.parametrize("room", ["trainer/", "settings/run/rules.py", "settings/run/loader.py", "datasets/build.py"])
def test_keys_that_errors_of_a_training_name_exist(room):
    named = {key for name, text in texts() if name.startswith(room) for key in KEY.findall(text)}
    files = {"image", "conversations", "train", "data_files", "weight_map", "images", "files", "template", "name"}
    assert named - set(KNOWN) - set(ALIASES) - files == set()


def test_every_verb_that_takes_a_model_has_the_three_flags():
    for verb in ("chat", "convert", "merge", "doctor"):
        module = COMMANDS[verb].module
        names = {name.replace("_", "-") for name in flags_of(module)}
        assert {"vision-tower", "projector"} <= names
        assert names & {"base", "model-name-or-path"}
