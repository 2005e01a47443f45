# SPDX-License-Identifier: Apache-2.0
"""Where each position of a batch takes its row from: text, visual features, newline or padding. numpy only.

``plan.build_plan`` is all of it.
"""
