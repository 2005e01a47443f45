# SPDX-License-Identifier: Apache-2.0
"""A model folder in one layout to a folder in another.

``layouts.convert`` is the way in; ``config`` writes config.json, ``transformers_files`` what transformers needs.
"""
