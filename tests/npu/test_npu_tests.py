# SPDX-License-Identifier: Apache-2.0
"""The tests for a card, run on the stand-in device: they work, and they see a broken operator."""

import subprocess
import sys

import pytest

from tests.npu_standin import build

pytestmark = pytest.mark.npu_standin


@pytest.mark.timeout(280)
def test_the_tests_for_a_card_pass_on_the_stand_in():
    if build.missing():
        pytest.skip(build.missing())
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "pytest", "-q", "-m", "npu", "tests/npu", "-p", "no:cacheprovider"],
        env=build.environment(build.build()), cwd=build.REPOSITORY, capture_output=True, text=True, timeout=270,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "21 passed" in done.stdout
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
