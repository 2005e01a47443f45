# SPDX-License-Identifier: Apache-2.0
"""Weights of 16, 8 or 4 bits for inference: their form, the kernels that multiply with them, and the choice of one."""

__all__: list[str] = []
