# SPDX-License-Identifier: Apache-2.0
"""A loss that jumps: finite, and so far above the steps before it that the run may be spoilt."""

from collections import deque
from statistics import median

STEPS = 20
"""Steps that a loss is compared with; their median, so that one jump does not hide the next."""
FEWEST = 5
"""Before so many steps nothing is called a jump."""


class LossHistory:
    """The losses of the last steps. ``factor`` times their median is a jump; 0 switches the look off."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.jumps = 0
        self._losses: deque[float] = deque(maxlen=STEPS)
        self._total = 0.0

    def times_above(self, total: float, steps: int) -> float | None:
        """How many times the usual loss this step has; None when that is no jump.

        ``total`` is the sum of the losses of the ``steps`` since the last log line, as the trainer keeps it.
        """
        known = steps == 1 or bool(self._losses)
        loss = total if steps == 1 else total - self._total
        self._total = total
        if not known:  # a resumed run in the middle of a log interval
            return None
        usual = median(self._losses) if len(self._losses) >= FEWEST else 0.0
        if self.factor and usual > 0 and loss > self.factor * usual:
            self.jumps += 1
            return loss / usual
        self._losses.append(loss)
        return None
