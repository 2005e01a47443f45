# SPDX-License-Identifier: Apache-2.0
"""Model folders in every published layout: found, read, checked, loaded, converted, merged and written.

``load.load_model`` is the way in; ``keymap`` has the names of tensors, ``formats`` the files, ``lora`` the adapters.
"""
