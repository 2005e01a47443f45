# SPDX-License-Identifier: Apache-2.0
"""The line that installs this project, and none of another name."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from paddlemix.utils import device, install
from paddlemix.utils.entry_point import run_command

ROOT = Path(__file__).resolve().parents[2]
PYTHON = sys.executable


@pytest.fixture(autouse=True)
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An interpreter that the PATH does not lead to, in another folder than the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", "/opt/python/bin/python3")
    return sys.executable


def checkout(folder: Path) -> Path:
    folder.mkdir()
    (folder / "setup.py").touch()
    return folder


class Wheel:
    """What is known of an installed wheel."""

    def __init__(self, url: str | None) -> None:
        self.url = url
        self.requires = ["numpy<2", 'paddlepaddle==3.3.1; extra == "cpu"', 'wandb>=0.17; extra == "wandb"']

    def read_text(self, name: str) -> str | None:
        return json.dumps({"url": self.url}) if self.url else None


def installed(monkeypatch: pytest.MonkeyPatch, **wheels: Any) -> None:
    """Only these distributions are installed."""

    def distribution(name: str) -> Any:
        if name.replace("-", "_") not in wheels:
            raise importlib.metadata.PackageNotFoundError(name)
        return wheels[name.replace("-", "_")]

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


@pytest.mark.parametrize(
    ("wheels", "words"),
    [
        ({}, None),
        ({"paddlepaddle": "3.0.0"}, None),
        ({"paddlepaddle": "3.0.0.dev20250527"}, None),
        ({"paddlepaddle": "0.0.0"}, None),
        ({"paddlepaddle_gpu": "3.3.1", "paddlepaddle": "2.6.2"}, None),
        ({"paddlepaddle_gpu": "2.6.1.post120"}, "paddlepaddle-gpu 2.6.1.post120 is installed, but 3.0.0 is the lowest"),
        ({"paddlepaddle": "2.6.2"}, "paddlepaddle 2.6.2 is installed, but 3.0.0 is the lowest"),
    ],
)
def test_a_paddle_that_is_too_old_stops_a_command_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], wheels: dict[str, str], words: str | None
) -> None:
    installed(monkeypatch, **{name: SimpleNamespace(version=version) for name, version in wheels.items()})
    assert run_command(lambda argv: device.before_paddle("cpu") and 0, []) == (0 if words is None else 2)
    assert (words or "") in capsys.readouterr().err


def test_a_checkout_is_installed_by_its_path(tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = checkout(tmp_path / "a checkout")
    installed(monkeypatch)
    assert install.install_line(root=root) == f"{python} -m pip install -e 'a checkout[cpu]'"
    monkeypatch.chdir(root)
    assert install.install_line(root=root) == f"{python} -m pip install -e '.[cpu]'"
    assert install.install_line("wandb", root) == f"{python} -m pip install -e '.[wandb]'"


@pytest.mark.parametrize(("wheel", "extra"), [("paddlepaddle_gpu", "gpu"), ("paddle_custom_npu", "npu")])
def test_the_paddle_of_a_card_is_not_replaced(
    wheel: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, **{wheel: Wheel(None)})
    assert install.install_line(root=checkout(tmp_path / "x")).endswith(f"'x[{extra}]'")


def test_a_wheel_is_installed_from_where_it_came_or_by_its_parts(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "dist"
    source.mkdir()
    installed(monkeypatch, paddlemix=Wheel(source.as_uri()))
    assert install.install_line(root=tmp_path) == f"{python} -m pip install '{source}[cpu]'"
    source.rmdir()
    by_parts = f"{python} -m pip install 'numpy<2' paddlepaddle==3.3.1"
    assert install.install_line(root=tmp_path) == by_parts
    installed(monkeypatch, paddlemix=Wheel(None))
    assert install.install_line(root=tmp_path) == by_parts


def test_an_environment_without_pip_is_filled_by_uv(
    tmp_path: Path, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else real(name))
    line = install.install_line("cpu", checkout(tmp_path / "x"))
    assert line == f"uv pip install --python {python} -e 'x[cpu]'"


def test_the_python_of_the_system_gets_an_environment_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_belongs_to_the_system", lambda: True)
    line = install.install_line("cpu", checkout(tmp_path / "x"))
    assert line == "/opt/python/bin/python3 -m venv .venv && .venv/bin/python -m pip install -e 'x[cpu]'"


def test_a_missing_package_is_one_line_with_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main(argv: list[str]) -> None:
        import no_such_package.inside  # noqa: F401

    assert run_command(main, []) == 2
    error = capsys.readouterr().err
    assert error.startswith('error: the package "no_such_package" is not installed for /opt/python/bin/python3')
    assert error.count("\n") == 1
    assert "-m pip install -e" in error
    with pytest.raises(ModuleNotFoundError):
        run_command(main, ["--debug"])


@pytest.mark.parametrize("name", ["paddlemix.no_such_module", "numpy.no_such_module", "json.no_such_module"])
def test_a_missing_part_of_what_is_there_keeps_its_traceback(name: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run_command(lambda argv: importlib.import_module(name) and 0, [])


def test_the_environment_of_the_checkout_is_named(tmp_path: Path) -> None:
    root = checkout(tmp_path / "x")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").touch()
    line = install.missing_package(ModuleNotFoundError("No module named x", name="no_pil.Image"), root)
    assert line is not None
    assert "but this project's environment is here: . x/.venv/bin/activate, and again; or" in line


def test_another_python_is_named_before_anything_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; sys.version_info = (3, 9, 1, 'final', 0); import paddlemix.utils.entry_point"
    done = subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: Python 3.10, 3.11 or 3.12 is needed, ")
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    line = install.missing_package(ModuleNotFoundError("No module named x", name="no_pil"))
    assert line is not None
    assert line.startswith("Python 3.10, 3.11 or 3.12 is needed, ")


def test_the_newest_python_is_that_of_the_installation() -> None:
    assert f'python_requires=">=3.10,<{".".join(map(str, install.NEWEST))}"' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize(("version", "code"), [("2.6.2", 2), ("3.0.0", 0), ("3.3.1", 0), ("0.0.0", 0), ("2.6", 2)])
def test_an_old_paddle_is_one_line_before_it_is_imported(
    version: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {"paddlepaddle": SimpleNamespace(version=version)}
    monkeypatch.setattr(install, "_distribution", found.get)
    assert run_command(lambda argv: device.before_paddle("cpu") and 0, []) == code
    error = capsys.readouterr().err
    wanted = f"error: paddlepaddle {version} is installed, but {install.LOWEST_PADDLE} is the lowest paddle"
    assert error.startswith(wanted if code else "")
    assert error.count("\n") == (1 if code else 0)
