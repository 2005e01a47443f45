# SPDX-License-Identifier: Apache-2.0
"""The tests for a card, run on the stand-in device from what the image of deploy/npu/Dockerfile holds."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.npu_standin import build, image

pytestmark = pytest.mark.npu_standin


@pytest.mark.timeout(280)
def test_the_tests_for_a_card_pass_on_the_stand_in(tmp_path: Path):
    if build.missing():
        pytest.skip(build.missing())
    image.make(tmp_path)
    environment = build.environment(build.build(), PYTHONPATH=str(tmp_path))
    environment.pop("PADDLEMIX_GOLDEN", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-m", "npu", "tests/npu", "-p", "no:cacheprovider"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=270,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    count = re.search(r"(\d+) passed", done.stdout)[1]
    assert f"`{count} passed`" in (tmp_path / "docs" / "npu-first-hour.md").read_text(encoding="utf-8")
    assert "skipped" not in done.stdout


def test_without_a_card_the_tests_fail_and_name_what_is_missing():
    kept = {"CUSTOM_DEVICE_ROOT": ""}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-m", "npu", "tests/npu", "-p", "no:cacheprovider",
         "-k", "speed"],
        env={**build.environment(build.PLUGIN), **kept}, cwd=build.REPOSITORY, capture_output=True, text=True,
        timeout=110,
    )  # fmt: skip
    assert done.returncode == 1
    assert "device npu: no npu device" in done.stdout
