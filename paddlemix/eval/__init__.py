# SPDX-License-Identifier: Apache-2.0
"""Evaluation: what answers are worth, in the file formats and by the rules of the benchmarks' authors.

Begin with ``scoring`` (answers to scores); ``benchmarks`` is the table of what can be scored.
"""
