# SPDX-License-Identifier: Apache-2.0
"""Commands in PaddleMIX's places: chat, pretraining and multi-view examples."""
