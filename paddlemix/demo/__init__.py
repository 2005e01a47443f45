# SPDX-License-Identifier: Apache-2.0
"""``make demo``: a small LLaVA learns drawn images and answers about them, on a CPU, in minutes.

Begin with ``run``; ``multiview_run`` is the multi-view demo.
"""
