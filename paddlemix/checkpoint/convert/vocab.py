# SPDX-License-Identifier: Apache-2.0
"""The vocabulary on its way between layouts: llava-hf gives the image a token, the original a number."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.checkpoint.folders import read_json
from paddlemix.checkpoint.formats.base import cast
from paddlemix.checkpoint.save_files import write_json
from paddlemix.text.tokenizer import BYTES, Tokenizer, load_tokenizer
from paddlemix.text.tokenizer_files import MODEL_FILE, has_tokenizer
from paddlemix.text.vocabulary import require_rows
from paddlemix.utils.constants import IMAGE_TOKEN
from paddlemix.utils.errors import CheckpointError

PAD, VIDEO = "<pad>", "<video>"
_ADDED = (IMAGE_TOKEN, PAD)
_ROUND = 64
"""llava-hf's tables are padded to a multiple of this."""
_ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class TokenizerPlan:
    """Rows of embedding and head in the target, and what becomes of the tokenizer's own tokens for images."""

    rows: int
    image_id: int | None = None
    pad_id: int | None = None
    video_id: int | None = None
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


def plan_for_hf(folder: Path, rows: int, remembered: int | None, *, video: bool = False) -> TokenizerPlan:
    """llava-hf: ``<image>`` and ``<pad>`` are tokens, and the table has a row for each; so is ``<video>`` of a model
    that knows videos (``video``).

    ``remembered``: rows of the llava-hf folder that these weights came from.
    """
    tokenizer, why = _tokenizer(folder)
    if tokenizer is None:
        raise CheckpointError(f"{why}; llava-hf needs one, since the image is a token there")
    image, pad = tokenizer.token_id(IMAGE_TOKEN), tokenizer.token_id(PAD)
    frames = tokenizer.token_id(VIDEO) if video else None
    if image is not None and image < rows:
        return TokenizerPlan(remembered or rows, image, tokenizer.pad_id if pad is None else pad, frames)
    size = tokenizer.vocab_size
    require_rows(tokenizer, rows)
    added = (*_ADDED, VIDEO) if video else _ADDED
    new = [token for token in added if tokenizer.token_id(token) is None]
    ids = {token: size + new.index(token) if token in new else tokenizer.token_id(token) for token in added}
    needed = max(rows, size + len(added))
    return TokenizerPlan(-(-needed // _ROUND) * _ROUND, ids[IMAGE_TOKEN], ids[PAD], ids.get(VIDEO), add=added)


def plan_without_image_token(folder: Path, rows: int, remembered: int | None) -> TokenizerPlan:
    """The original: the rows that llava-hf added at the end are cut off again, with their tokens."""
    tokenizer, _ = _tokenizer(folder)
    image = tokenizer.token_id(IMAGE_TOKEN) if tokenizer is not None else None
    if tokenizer is None or image is None or not tokenizer.is_added(image):
        return TokenizerPlan(remembered or rows)
    pad = tokenizer.token_id(PAD)
    first = image if pad is None else min(image, pad)
    # ``<pad>`` is of our own making in a byte-level vocabulary, and ``<video>`` then came with it.
    ours = _ADDED if pad is None else (*_ADDED, VIDEO)
    others = [number for number in range(first, tokenizer.vocab_size) if tokenizer.token(number) not in ours]
    if others or first < tokenizer.base_size:
        return TokenizerPlan(rows)
    return TokenizerPlan(remembered or first, drop=ours)


def keep_tokenizer(plan: TokenizerPlan, source: Path, target: Path, notes: list[str]) -> None:
    """Write the tokenizer of ``source`` into ``target`` as the plan says."""
    tokenizer, why = _tokenizer(source)
    if tokenizer is None:
        notes.append(f"{why}; the new folder has none either")
        return
    if plan.add:
        tokenizer.add_special(plan.add)
    if plan.drop and tokenizer.kind == BYTES:  # its tokens stand in tokenizer.json, too
        for token in plan.drop:
            if tokenizer.token_id(token) is not None:
                tokenizer.drop(token)
    tokenizer.save(target)
    if plan.add:
        _patch(target, {}, pad=PAD)
    if plan.drop:
        _patch(target, dict.fromkeys(plan.drop), pad=None)


def with_rows(values: np.ndarray, dtype: str, axis: int, rows: int) -> np.ndarray:
    """A table with ``rows`` entries along ``axis``: cut at the end, or filled up there with the mean of all entries.

    ``values`` ``[V, D]`` (axis 0) or ``[D, V]`` (axis 1), floats of ``dtype`` (bfloat16: uint16), to the same with
    ``rows`` for V.
    A mean never wins a comparison of scores against every other entry; random numbers and zeros may.
    """
    table = values if axis == 0 else values.T
    have = len(table)
    if rows <= have:
        return values if rows == have else (table[:rows] if axis == 0 else table[:rows].T)
    made = np.empty((rows, table.shape[1]), values.dtype)
    total = np.zeros(table.shape[1], np.float64)
    for start in range(0, have, _ROWS_AT_A_TIME):
        block = table[start : start + _ROWS_AT_A_TIME]
        made[start : start + len(block)] = block
        total += cast(block, dtype, "float32").sum(axis=0, dtype=np.float64)
    made[have:] = cast((total / have).astype(np.float32), "float32", dtype)
    return made if axis == 0 else made.T


def _tokenizer(folder: Path) -> tuple[Tokenizer | None, str]:
    """The tokenizer, or why there is none: no file, or a tokenizer.json of a kind that is not read here."""
    if not has_tokenizer(folder):
        return None, f"{folder}: no tokenizer.model"
    try:
        return load_tokenizer(folder), ""
    except CheckpointError as error:
        if (folder / MODEL_FILE).is_file():
            raise
        return None, str(error)


def _patch(folder: Path, drop: dict[str, Any], pad: str | None) -> None:
    """Set the pad token and take tokens out of the three JSON files that ``Tokenizer.save`` wrote."""
    config = read_json(folder / "tokenizer_config.json")
    decoder = config["added_tokens_decoder"]
    config["added_tokens_decoder"] = {key: row for key, row in decoder.items() if row["content"] not in drop}
    config["pad_token"] = pad
    write_json(folder / "tokenizer_config.json", config)
    special = {
        role: token for role, token in read_json(folder / "special_tokens_map.json").items() if token not in drop
    }
    write_json(folder / "special_tokens_map.json", {**special, **({"pad_token": pad} if pad else {})})
    added = read_json(folder / "added_tokens.json")
    write_json(folder / "added_tokens.json", {token: number for token, number in added.items() if token not in drop})
