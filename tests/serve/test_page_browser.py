# SPDX-License-Identifier: Apache-2.0
"""The page in headless Chromium, at the widths of a desk and of a phone, in both languages.

Needs an interpreter with gradio and playwright (PADDLEMIX_WEB_PYTHON), and Chromium on the PATH; docs/serving.md has
the lines that make them.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.reference
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("size", "locale"), [("1280x850", "en-US"), ("390x844", "zh-CN")])
def test_a_person_asks_stops_asks_again_votes_and_leaves(size: str, locale: str) -> None:
    python = os.environ.get("PADDLEMIX_WEB_PYTHON")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not python or chromium is None:
        pytest.skip("PADDLEMIX_WEB_PYTHON names no interpreter with gradio and playwright, or there is no Chromium")
    words = [python, "-m", "tests.serve.page_browser", chromium, size, locale]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
