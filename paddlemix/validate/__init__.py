# SPDX-License-Identifier: Apache-2.0
"""A look at all rows and images of a run before any card is booked: ``paddlemix validate CONFIG.json``.

Begin with ``run.validate``; ``survey`` measures the rows in parallel, ``report`` says what was found. No paddle.
"""
