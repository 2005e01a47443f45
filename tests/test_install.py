# SPDX-License-Identifier: Apache-2.0
"""setup.py: the extras that the settings and the docs speak of."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools
from packaging.requirements import Requirement

from paddlemix.settings.run.training import KNOWN
from paddlemix.utils import install

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """``extras_require`` of the project."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(setuptools, "setup", given.update)
    runpy.run_path(str(ROOT / "setup.py"))
    return given["extras_require"]


def test_every_logger_of_report_to_can_be_installed_by_its_name(extras: dict[str, list[str]]) -> None:
    named = re.findall(r"\w+", KNOWN["report_to"].facts.meaning.partition(": ")[2])
    assert named
    assert set(named) <= set(extras)


def test_every_kind_of_machine_gets_the_same_trainer(extras: dict[str, list[str]]) -> None:
    trainer = [line for line in extras["cpu"] if not line.startswith("paddlepaddle")]
    assert extras["npu"] == trainer
    assert extras["gpu"][1:] == trainer


@pytest.mark.parametrize(
    ("version", "stays"),
    [("2.6.2", False), ("2.6.1.post120", False), ("3.0.0", True), ("3.0.0.dev20250527", True), ("3.0.0rc1", True),
     ("3.3.1", True), ("3.4.0.dev20261101", True)],
)  # fmt: skip
def test_the_gpu_wheel_of_the_lowest_paddle_stays_and_an_older_one_does_not(
    extras: dict[str, list[str]], version: str, stays: bool
) -> None:
    requirement = Requirement(extras["gpu"][0])
    assert requirement.name == "paddlepaddle-gpu"
    # As pip asks of a wheel that is installed: a pre-release is taken for what it is.
    assert requirement.specifier.contains(version, prereleases=True) is stays


def test_the_lowest_paddle_is_the_same_in_setup_and_at_run_time(extras: dict[str, list[str]]) -> None:
    assert extras["gpu"][0] == f"paddlepaddle-gpu>={install.LOWEST_PADDLE}.dev0"
