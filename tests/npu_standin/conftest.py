# SPDX-License-Identifier: Apache-2.0
"""The stand-in device, built once, and the findings of its workers, each run once for all pytest processes."""

import fcntl
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.npu_standin import build


@pytest.fixture(scope="session")
def standin() -> Path:
    """Folder that holds the stand-in's library."""
    reason = build.missing()
    if reason:
        pytest.skip(reason)
    return build.build()


@pytest.fixture(scope="session")
def worker(standin: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """``worker(case, **environment)``: the findings of a case, shared through a file with the other processes."""
    shared = _common(tmp_path_factory)

    def run(case: str, **changes: str) -> dict[str, Any]:
        name = "-".join([case, *(f"{key}={value}" for key, value in sorted(changes.items()))])
        path = shared / f"standin-{name.replace('/', '_')}.json"
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                path.write_text(json.dumps(build.run_worker(standin, case, **changes)), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    return run


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that ``make`` fills, for all pytest processes of one run."""
    folder = _common(factory) / name
    folder.mkdir(exist_ok=True)
    done = folder / "done"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


def _common(factory: pytest.TempPathFactory) -> Path:
    """Under xdist the parent folder is common to all processes of one run."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
