# SPDX-License-Identifier: Apache-2.0
"""The made-up machine, one for each test."""

import pytest

from tests.deploy.launch_kit import make_bench


@pytest.fixture
def bench(tmp_path):
    """See ``launch_kit.make_bench``."""
    return make_bench(tmp_path)
