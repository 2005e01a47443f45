# SPDX-License-Identifier: Apache-2.0
"""The pieces of a stream in LLaVA's worker protocol."""

import json

from paddlemix.serve.faults import RequestError


def chunk(text: str, code: int = 0) -> bytes:
    """One piece of a stream."""
    return json.dumps({"text": text, "error_code": code}).encode() + b"\0"


def told(error: RequestError) -> bytes:
    """An error as a chunk."""
    return chunk(error.message, 1)
