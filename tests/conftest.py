# SPDX-License-Identifier: Apache-2.0
"""Fixtures that every room's tests share."""

import os
import signal
from collections.abc import Iterator
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


@pytest.fixture(scope="session")
def golden_internvl() -> Path:
    """The InternVL-Chat and MV-LLaVA part with its checkpoints; the project's small copy has no room for those."""
    folder = golden_root() / "internvl_mv"
    if (folder / "internvl").is_dir():
        return folder
    if env.get("PADDLEMIX_GOLDEN"):
        pytest.fail(f"no golden data at {folder}: PADDLEMIX_GOLDEN names a folder without it", pytrace=False)
    pytest.skip("the small golden copy has no InternVL checkpoints; set PADDLEMIX_GOLDEN to the full data")


@pytest.fixture
def usual_signals() -> Iterator[None]:
    """The signals of a command in a terminal, for this process and what it starts; for every test that sends one.

    nohup, background jobs of a shell and some CI hand on ignored ones. Not for all tests: those signals are ignored
    so that the whole run outlives its terminal.
    """
    before = {
        number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    }
    for number in before:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        if handler is not None:  # None: set by a library in C
            signal.signal(number, handler)


def pytest_configure(config: pytest.Config) -> None:
    """One thread per worker, since tests run side by side and small matrices do not gain from more; no network."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("PADDLEMIX_HUB", "off")  # no test looks for a model on the network
