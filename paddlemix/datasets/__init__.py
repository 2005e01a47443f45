# SPDX-License-Identifier: Apache-2.0
"""Rows of data files to batches: reading, checking, rendering, packing and the order of an epoch. No paddle.

Begin with ``build.build_datasets``; ``rows`` says what a row may hold.
"""
