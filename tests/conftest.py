# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every room's tests share."""

import os
from pathlib import Path

import pytest

from paddlemix.utils import env

HERE = Path(__file__).resolve().parent


def golden_root() -> Path:
    """Folder of the golden data: ``PADDLEMIX_GOLDEN`` when it is set, else the small copy of the project."""
    named = env.get("PADDLEMIX_GOLDEN")
    return Path(named) if named else HERE / "data" / "golden"


@pytest.fixture(scope="session")
def golden_llava() -> Path:
    """The LLaVA part of the golden data. A missing folder is a failure and not a skip."""
    folder = golden_root() / "llava"
    if not folder.is_dir():
        pytest.fail(
            f"no golden data at {folder}: set PADDLEMIX_GOLDEN to a folder that holds llava/, "
            "or restore tests/data/golden from the repository",
            pytrace=False,
        )
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """One thread per worker: the tests run side by side, and small matrices do not gain from more."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
