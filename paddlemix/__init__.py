# SPDX-License-Identifier: Apache-2.0
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - a checkout may be run by any Python
    # Older ones fail at the first annotation, with a traceback that says nothing of the version.
    sys.exit(f"error: Python 3.10, 3.11 or 3.12 is needed, {sys.executable} is {sys.version.split()[0]}")
