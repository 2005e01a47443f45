# SPDX-License-Identifier: Apache-2.0
"""Multi-view LLaVA: describing objects by their views."""
