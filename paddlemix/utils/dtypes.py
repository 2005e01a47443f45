# SPDX-License-Identifier: Apache-2.0
"""The dtypes that a model computes in, by the names that people give them."""

from typing import Any

from paddlemix.utils.errors import ConfigError

DTYPES = ("float32", "float16", "bfloat16")

_SHORT = {"fp32": "float32", "float": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16"}


def dtype_named(value: Any, what: str = "dtype") -> str:
    """``float32``, ``float16`` or ``bfloat16`` for a name (also ``fp16``, ``paddle.float16``) or a dtype of paddle's.

    ConfigError for every other one: a cast to whole numbers, for example, would leave nothing of the weights.
    """
    text = str(value)
    for prefix in ("paddle.", "torch."):
        text = text.removeprefix(prefix)
    name = _SHORT.get(text, text)
    if name in DTYPES:
        return name
    more = "; weights in 8 or 4 bits are not supported" if "int" in name or name.isdecimal() else ""
    raise ConfigError(f'{what} "{text}": expected one of {", ".join(DTYPES)}{more}')
