# SPDX-License-Identifier: Apache-2.0
"""setup.py: the extras that the settings and the docs speak of."""

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import setuptools

from paddlemix.settings.training import KNOWN

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
    assert extras["gpu"] == extras["npu"] == [line for line in extras["cpu"] if not line.startswith("paddlepaddle")]
