# SPDX-License-Identifier: Apache-2.0
"""PaddleMIX's LLaVA example: ``run_predict_multiround.py`` (chat) and ``pretrain.py``."""
