# SPDX-License-Identifier: Apache-2.0
"""Vision towers. ``base`` has what they share, ``build`` which there are.

Begin with ``clip``.
"""
