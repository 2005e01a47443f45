# SPDX-License-Identifier: Apache-2.0
"""What this machine can do, and what a model folder is: ``paddlemix doctor [FOLDER]``.

Begin with ``report``; every line of it is a ``findings.Finding``.
"""
