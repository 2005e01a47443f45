# SPDX-License-Identifier: Apache-2.0
"""The fused operators of the Ascend plug-in: which of them are there, in which form, and how they are called.

Begin with ``library.form_of``; which of them serve is decided in ``ops.runtime`` and ``ops.dispatch``.
"""
