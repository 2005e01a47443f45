# SPDX-License-Identifier: Apache-2.0
"""The programs that draw curves: which numbers they get, and what happens without them."""

import importlib.util
import runpy
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from paddlemix.settings.run.checks import REPORTERS as NAMES
from paddlemix.settings.run.loader import load_settings
from paddlemix.trainer.reports import REPORTERS, Reports, require_reporters
from paddlemix.utils.errors import ConfigError
from tests.trainer.run_kit import arguments, go
from tests.trainer.trainer_kit import settings

ROOT = Path(__file__).resolve().parents[2]


class Recorder:
    """A package that stands for each of the programs, and writes down how it is called."""

    class errors:
        class Error(Exception):
            """As wandb's."""

    def __init__(self, fault=None):
        self.calls, self.fault = [], fault

    def note(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if self.fault == name:
                raise self.errors.Error("nobody is logged in")
            return SimpleNamespace(**{part: self.note(part) for part in ("add_scalar", "flush", "close")})

        return call

    def install(self, monkeypatch, name):
        module = ModuleType(REPORTERS[name].package)
        module.__spec__ = ModuleSpec(module.__name__, None)
        for part in ("SummaryWriter", "LogWriter", "init", "log", "finish", "login", "Settings"):
            setattr(module, part, self.note(part))
        module.errors = self.errors
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)

    def of(self, *names):
        return [call for call in self.calls if call[0] in names]


def test_every_program_that_can_be_named_has_a_writer_and_an_extra(monkeypatch):
    monkeypatch.setattr("setuptools.setup", lambda **keys: None)
    extras = runpy.run_path(str(ROOT / "setup.py"))["EXTRAS"]
    assert tuple(REPORTERS) == NAMES
    for name, reporter in REPORTERS.items():
        assert any(line.lower().startswith(reporter.package.lower()) for line in extras[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_is_a_sentence_with_the_line_that_installs_it(tmp_path, monkeypatch, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=rf'"report_to" names {name}, .* install .*\[{name}\].* take {name} out'):
        require_reporters(settings(tmp_path, report_to=(name,)))


def test_an_unknown_program_is_refused_with_the_nearest_name(tmp_path):
    with pytest.raises(ConfigError, match='"tensorbord" is not known, did you mean "tensorboard"'):
        load_settings(["--model_name_or_path", "m", "--output_dir", str(tmp_path), "--report_to", "tensorbord"])


@pytest.mark.parametrize("name", NAMES)
def test_each_program_gets_the_numbers_of_every_log_line_and_no_secret(place, tmp_path, monkeypatch, name):
    recorder = Recorder()
    recorder.install(monkeypatch, name)
    keys = dict(report_to=name, run_name="mine", wandb_api_key="SECRET", max_steps=2)
    go(place, tmp_path, **keys)
    if name in ("tensorboard", "visualdl"):
        steps = [(args[0], args[2]) for _, args, _ in recorder.of("add_scalar")]
        assert recorder.of("close")
    else:
        steps = [(key, kwargs["step"]) for _, args, kwargs in recorder.of("log") for key in args[0]]
        ((_, _, opened),) = recorder.of("init")
        assert opened["name"] == "mine"
        assert opened["config"]["max_steps"] == 2
        assert "SECRET" not in str(opened)
        assert recorder.of("finish")
    assert {("train/loss", 1), ("train/learning_rate", 1), ("train/loss", 2), ("train/train_loss", 2)} <= set(steps)
    assert "SECRET" not in str([call for call in recorder.calls if call[0] != "login"])


def test_a_program_that_cannot_begin_is_told_before_the_first_step_and_leaves_nothing(place, tmp_path, monkeypatch):
    recorder = Recorder(fault="init")
    recorder.install(monkeypatch, "wandb")
    with pytest.raises(ConfigError, match='"report_to" names wandb, which cannot begin .*nobody is logged in'):
        go(place, tmp_path / "out", report_to="wandb", max_steps=2)
    assert not (tmp_path / "out").exists()


def test_a_program_that_breaks_later_ends_nothing(tmp_path, monkeypatch, capsys):
    recorder = Recorder(fault="log")
    recorder.install(monkeypatch, "wandb")
    reports = Reports(settings(tmp_path, report_to=("wandb",)), tmp_path)
    with reports.opened():
        reports.log({"loss": 1.0}, 1)
        reports.log({"loss": 1.0}, 2)
    assert len(recorder.of("log")) == 1
    assert "wandb takes no more numbers (Error: nobody is logged in)" in capsys.readouterr().err


def test_the_other_processes_report_to_nobody(tmp_path, monkeypatch):
    recorder = Recorder()
    recorder.install(monkeypatch, "wandb")
    with Reports(settings(tmp_path, report_to=("wandb",)), tmp_path, main=False).opened():
        pass
    assert recorder.calls == []


def test_curves_lie_below_the_output_folder_or_where_logging_dir_says(place, tmp_path):
    assert load_settings(arguments(place, tmp_path, report_to="visualdl")).training.report_to == ("visualdl",)
    go(place, tmp_path / "a", report_to="visualdl", max_steps=1)
    assert list((tmp_path / "a" / "runs").iterdir())
    go(place, tmp_path / "b", report_to="visualdl", max_steps=1, logging_dir=tmp_path / "curves")
    assert list((tmp_path / "curves").iterdir())
    assert not (tmp_path / "b" / "runs").exists()
