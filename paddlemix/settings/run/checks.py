# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a single value, for keys whose kind and range do not tell it; None when all is well."""

from collections.abc import Callable
from typing import Any

from paddlemix.settings.published.grid import read_aspect, read_grid
from paddlemix.settings.published.reader import KeyReader
from paddlemix.utils.errors import CheckpointError
from paddlemix.utils.registry import nearest

SHARDING = ("stage1", "stage2", "stage3", "offload")
SHARDING_OPTIONS = (
    "enable_stage1_tensor_fusion", "enable_stage1_overlap", "enable_stage2_overlap", "split_param",
    "disable_stage1_reduce_avg", "enable_stage1_broadcast_overlap", "enable_stage1_allgather_overlap",
    "enable_release_grads", "enable_fuse_optimizer_states",
)  # fmt: skip
"""What PaddleNLP 3.0.0b4 knows."""
DATA_PARALLEL_OPTIONS = ("enable_allreduce_avg_in_gradinent_scale", "gradient_sync_after_accumulate")
"""What PaddleNLP 3.0.0b4 knows, as it spells it."""
REPORTERS = ("tensorboard", "visualdl", "wandb", "swanlab")
"""What ``report_to`` may name."""


def sharding_words(value: str) -> str | None:
    """``sharding``: one stage, and offload."""
    wrong = _words(value, SHARDING)
    stages = [word for word in value.split() if word != "offload"]
    return wrong or ("expected exactly one stage" if value.split() and len(stages) != 1 else None)


def sharding_options(value: str) -> str | None:
    """``sharding_parallel_config``."""
    return _words(value, SHARDING_OPTIONS)


def data_parallel_options(value: str) -> str | None:
    """``data_parallel_config``."""
    return _words(value, DATA_PARALLEL_OPTIONS)


def _words(value: str, known: tuple[str, ...]) -> str | None:
    wrong = next((word for word in value.split() if word not in known), None)
    return None if wrong is None else f'unknown word "{wrong}"; expected words of {", ".join(known)}'


def reporters(value: tuple[str, ...]) -> str | None:
    """``report_to``."""
    wrong = next((name for name in value if name not in REPORTERS), None)
    if wrong is None:
        return None
    hint = nearest(wrong, REPORTERS) or f" (known: {', '.join(REPORTERS)})"
    return f'"{wrong}" is not known{hint}; null or an empty list reports to nobody'


def benchmarks(value: tuple[Any, ...]) -> str | None:
    """``eval_benchmarks``: the form of its entries; their names and files are looked at before the run."""
    texts = ("name", "data", "label", "split", "prompts", "image_folder", "convention")
    numbers = ("limit", "max_new_tokens")
    labels = [entry.get("label") or entry.get("name") for entry in value]
    for number, entry in enumerate(value):
        for key, given in entry.items():
            if key not in (*texts, *numbers):
                known = (*texts, *numbers)
                return f'item {number}: unknown key "{key}"{nearest(key, known)} (known: {", ".join(known)})'
            if given is not None and (not isinstance(given, str) or not given if key in texts else not _count(given)):
                return f'item {number}: "{key}" has to be a {"text" if key in texts else "whole number from 1"}'
        for key in ("name", "data"):
            if not entry.get(key):
                return f'item {number}: "{key}" is missing'
        if labels.index(labels[number]) != number:
            return f'item {number}: "{labels[number]}" is there twice; give one of them a "label"'
    return None


def _count(value: Any) -> bool:
    return type(value) is int and value >= 1


def not_zero(value: int) -> str | None:
    """``tensor_parallel_degree``, ``sep_parallel_degree``."""
    return "expected -1, or a number of devices" if value == 0 else None


def pairs(value: tuple[Any, ...]) -> str | None:
    """Pairs of sizes or steps."""
    for pair in value:
        fits = isinstance(pair, tuple) and len(pair) == 2
        if not fits or not all(type(number) is int and number > 0 for number in pair):
            return "expected pairs of whole numbers above 0, such as [[336, 672], [672, 336]]"
    return None


def aspect_word(value: str) -> str | None:
    """``image_aspect_ratio``."""
    return _read(lambda: read_aspect(KeyReader({"image_aspect_ratio": value}, ""), "square"))


def grid(value: tuple[Any, ...] | str) -> str | None:
    """``image_grid_pinpoints``."""
    if not isinstance(value, str):
        return pairs(value)
    return _read(lambda: read_grid(KeyReader({"image_grid_pinpoints": value}, ""), 1))


def _read(read: Callable[[], Any]) -> str | None:
    """What is wrong with a value, as the reader of a config.json says it."""
    try:
        read()
    except CheckpointError as error:
        return str(error).partition(": ")[2].partition(": ")[2]
    return None
