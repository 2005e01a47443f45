# SPDX-License-Identifier: Apache-2.0
"""Batch tools over many objects of several views (MV-LLaVA): questions asked in turns, answers read into fields.

Begin with ``annotator.Annotator`` (asks several objects at once) and ``batch.run`` (a run that goes on after a kill).
"""
