# SPDX-License-Identifier: Apache-2.0
"""Published config.json files (LLaVA, llava-hf, InternVL, PaddleMIX, plain language models) to ``LlavaConfig``.

``config.load_config`` is the way in; ``reader.Reader`` takes the keys of a file one by one and sees what nobody took.
"""
