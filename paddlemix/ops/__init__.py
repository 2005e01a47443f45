# SPDX-License-Identifier: Apache-2.0
"""Operators that models are made of, each with its fused and its plain form, and their tensor parallel parts.

Begin with ``attention.contract.Mask`` and ``attention.select.attend``; ``compat`` knows where each paddle has them.
"""
