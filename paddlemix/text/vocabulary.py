# SPDX-License-Identifier: Apache-2.0
"""A tokenizer beside weights: every id that it makes needs a row in their tables."""

from paddlemix.text.tokenizer import Tokenizer
from paddlemix.utils.errors import CheckpointError

_PADS = ("<pad>", "[PAD]")


def rowless(tokenizer: Tokenizer, rows: int) -> list[str]:
    """The tokens that tables of so many rows have none for, but for the pad token, which no text needs.

    Published folders name a ``<pad>`` behind the last row; padding is masked, and no sample ever holds it.
    """
    pads = {tokenizer.files.roles.get("pad_token"), *_PADS}
    missing = [token.content for token in tokenizer.added_tokens if token.id >= rows and token.content not in pads]
    return [*(tokenizer.token(number) for number in range(rows, tokenizer.base_size)), *missing]


def require_rows(tokenizer: Tokenizer, rows: int) -> None:
    """CheckpointError that names the tokens which tables of so many rows have none for; the pad token may be one.

    More rows than tokens are fine: llava-hf pads its tables to a multiple of 64.
    """
    missing = rowless(tokenizer, rows)
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(
            f"{tokenizer.files.where}: the tokenizer has {tokenizer.vocab_size} tokens, the weights have rows for "
            f"{rows}, none for {shown}; put the tokenizer files that belong to these weights in its place"
        )


def fit_rows(tokenizer: Tokenizer, rows: int) -> None:
    """``require_rows``, and a pad token without a row is dropped: no id of ``tokenizer`` lies outside of the tables."""
    require_rows(tokenizer, rows)
    for token in tokenizer.added_tokens:
        if token.id >= rows:
            tokenizer.drop(token.content)
