# SPDX-License-Identifier: Apache-2.0
"""One attention for towers and decoders: a mask as data, and the backends that serve it.

Begin with ``contract`` (mask and backend), then ``select.attend``, which chooses the backend.
"""
