# SPDX-License-Identifier: Apache-2.0
"""The decoder: Llama's and Mistral's layers, their cache, and rotary positions.

Begin with ``llama``.
"""
