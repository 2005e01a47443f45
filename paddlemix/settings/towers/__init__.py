# SPDX-License-Identifier: Apache-2.0
"""Vision towers as data: what config.json says, published names, tensor names, start values, and how images are made.

One file describes one tower (``base.Tower`` lists the fields) and ``table.TOWERS`` holds them all; the layers
themselves are in ``models/vision``. docs/extending.md walks through adding one.
"""
