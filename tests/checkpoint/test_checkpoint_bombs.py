# SPDX-License-Identifier: Apache-2.0
"""No file of a model folder that is refused takes more than 500 MB before it is, and none is waited for."""

import json
import subprocess
import sys

import pytest

from tests.checkpoint import file_bombs

pytestmark = pytest.mark.timeout(900)  # seconds on an idle machine


@pytest.fixture(scope="module")
def costs(tmp_path_factory) -> dict[str, dict]:
    """What reading each file of the list cost, measured in processes of their own."""
    command = [sys.executable, file_bombs.__file__, str(tmp_path_factory.mktemp("bombs"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", [*file_bombs.CONTENT, *file_bombs.WRITTEN])
def test_a_file_that_unfolds_is_refused_within_500_mb(costs, name):
    assert "ended with status" not in costs[name]["told"]
    assert costs[name]["told"]
    assert costs[name]["all MB"] < 500


@pytest.mark.parametrize("name", [name for name in file_bombs.WRITTEN if name.endswith(("end", "pipe"))])
def test_what_is_no_regular_file_is_called_so(costs, name):
    assert "is not a regular file" in costs[name]["told"]
