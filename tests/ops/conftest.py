# SPDX-License-Identifier: Apache-2.0
"""What several tests of operators begin with."""

import paddle
import pytest


@pytest.fixture
def views():
    """Slices are views, as they are unless a CPU is tuned (other tests of a process may have done that)."""
    name = "FLAGS_use_stride_kernel"
    before = paddle.get_flags([name])
    paddle.set_flags({name: True})
    yield
    paddle.set_flags(before)
