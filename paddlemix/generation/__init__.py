# SPDX-License-Identifier: Apache-2.0
"""A model that answers: opened once, asked with messages and images, token by token.

Begin with ``predictor.Predictor``; ``engine`` decodes, ``session`` is the chat of a terminal.
"""
