# SPDX-License-Identifier: Apache-2.0
"""What every room needs and that knows nothing of models: errors, files, addresses, the environment, the console.

Begin with ``errors`` (which error means what), ``files`` (writing and fetching) and ``env`` (the only reader of the
environment).
"""
