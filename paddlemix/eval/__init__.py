# SPDX-License-Identifier: Apache-2.0
"""Evaluation: what answers are worth, in the file formats and by the rules of the benchmarks' authors."""
