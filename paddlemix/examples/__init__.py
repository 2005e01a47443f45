# SPDX-License-Identifier: Apache-2.0
"""Commands in PaddleMIX's places: chat, pretraining and multi-view examples.

Begin with ``llava/run_predict_multiround.py``: flags in, one ``generation.session.ChatSession`` asked.
"""
