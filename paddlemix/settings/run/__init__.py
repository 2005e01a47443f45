# SPDX-License-Identifier: Apache-2.0
"""The settings of a training run: one flat JSON and a command line to ``TrainingSettings``, refused early.

``loader.load_settings`` is the way in; ``training`` is the table of all keys, ``rules`` what single keys cannot tell.
"""
