# SPDX-License-Identifier: Apache-2.0
"""Words to ids and back: chat templates, messages, the tokenizer, and the text of a stream. No paddle.

Begin with ``render.render``: messages and a template to ids, with labels for training.
"""
