# SPDX-License-Identifier: Apache-2.0
"""Two exported graphs as a model that can be asked: all of generation works on it, and no layer of it is built."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle
from paddle import Tensor, inference

from paddlemix.export.graphs import BY_OPERATOR
from paddlemix.export.manifest import Facts
from paddlemix.models.llm.cache import Cache, KVCache
from paddlemix.models.llm.static_cache import StaticCache
from paddlemix.ops import few_rows, step_operator
from paddlemix.ops.attention.contract import Mask
from paddlemix.ops.compat import log_errors_alone
from paddlemix.ops.runtime import Runtime
from paddlemix.settings.model import LlavaConfig
from paddlemix.utils import device as devices
from paddlemix.utils.errors import BackendError, CheckpointError, ConfigError
from paddlemix.utils.logging import get_logger

PIECE = 1024
"""Positions of a prompt that a run takes at most. Of a long one the graph makes blocks (``ops.attention.parted``): the
scores of attention take heads x 256 x length x 4 bytes at most."""
POOL_MB = 256
"""Memory that Paddle Inference takes on a GPU at the start; it grows as it needs more."""


class Graph:
    """A saved graph in Paddle Inference. ``device`` as ``paddle.set_device`` takes it: ``cpu``, ``gpu:1``, ``npu``."""

    def __init__(self, prefix: Path, device: str, exported_with: str) -> None:
        try:
            self._predictor = _opened(prefix, device)
        except _ERRORS as error:
            raise CheckpointError(
                f"{prefix}.json: Paddle Inference of paddle {paddle.__version__} does not open this graph, which "
                f"paddle {exported_with} wrote ({_first_line(error)}); export it again with the paddle that runs it"
            ) from error
        self.inputs = self._predictor.get_input_names()

    def run(self, inputs: list[Tensor]) -> list[Tensor]:
        """The outputs for ``inputs``, in the order of ``self.inputs``; shapes and dtypes: the part's ``Facts``."""
        # Paddle Inference reads memory from its beginning: a view with strides would be other values.
        return self._predictor.run([one if one.is_contiguous() else one.contiguous() for one in inputs])


_ERRORS = (RuntimeError, ValueError, OSError)
"""What Paddle Inference raises for a graph that it does not open."""


def _opened(prefix: Path, device: str) -> inference.Predictor:
    """The graph of ``prefix``; on a CPU that with operators of its own, where it was written and they can be had."""
    with_operators = prefix.with_name(f"{prefix.name}{BY_OPERATOR}.json")
    if device == "cpu" and with_operators.is_file():
        reason = step_operator.why_not()
        if reason is None:
            try:
                return _predictor(with_operators, prefix, device)
            except _ERRORS as error:
                _tell(
                    prefix.name,
                    f"export the model again: {with_operators.name} does not open here, {_first_line(error)}",
                )
        else:
            _tell("graphs", reason)
    return _predictor(prefix.with_name(f"{prefix.name}.json"), prefix, device)


@functools.cache
def _tell(what: str, reason: str) -> None:
    """Once in a process, as what is missing for one graph is so for the next one."""
    get_logger(__name__).info(f"{what}: by paddle's operators, which take longer ({reason})")


def _predictor(program: Path, prefix: Path, device: str) -> inference.Predictor:
    kind, _, index = device.partition(":")
    settings = inference.Config(str(program), f"{prefix}.pdiparams")
    settings.disable_glog_info()
    settings.enable_new_ir()
    settings.enable_new_executor()
    if kind == "cpu":
        if not program.stem.endswith(BY_OPERATOR):  # has many small tensors; those of ours are few
            devices.tune_graphs()
        # oneDNN takes the products over otherwise: other sums than the dynamic model's, and slower where measured.
        settings.disable_mkldnn()
        settings.set_cpu_math_library_num_threads(paddle.get_flags("FLAGS_paddle_num_threads").popitem()[1])
    elif kind == "gpu":
        settings.enable_use_gpu(POOL_MB, int(index or 0))
    else:
        settings.enable_custom_device(kind, int(index or 0))
    log_errors_alone()
    return inference.create_predictor(settings)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line and not line.startswith("-")), type(error).__name__)[:200]


@dataclass(frozen=True, eq=False)
class PlannedRows:
    """Rows of a splice plan that the graph itself will embed. ``source`` [B, L]; the others belong to all of them."""

    token_ids: Tensor
    source: Tensor
    features: Tensor
    blend: tuple[Tensor, Tensor]
    width: int

    @property
    def shape(self) -> list[int]:
        """``[B, L, D]``."""
        return [*self.source.shape, self.width]

    def __getitem__(self, part: tuple[slice, slice]) -> "PlannedRows":
        """Some of the rows, and of their places."""
        return PlannedRows(self.token_ids, self.source[part], self.features, self.blend, self.width)


class StaticModel:
    """What ``models.answering`` asks for, by graphs. ``vision`` None: questions without images only."""

    def __init__(self, config: LlavaConfig, text: Graph, vision: Graph | None, facts: Facts) -> None:
        self.config = config
        self.dtype = facts.dtype
        self.runtime = Runtime(facts.device)
        self._text, self._vision = text, vision
        # Inputs without rows are not sizes that every operator takes, so one row of zeros stands in. In place of the
        # features it comes just where the plan has the row of zeros for padding.
        self._nothing = paddle.zeros([1, config.text.hidden_size], dtype=self.dtype)
        self._no_blend = paddle.zeros([1, 4], dtype="int64"), paddle.zeros([1, 4], dtype="float32")
        shape = [1, config.text.num_key_value_heads, 1, config.text.width_per_head]
        self._empty = paddle.zeros(shape, dtype=self.dtype)
        # The rotation of a growing base depends on the length of the whole step.
        self._in_one_piece = config.text.rotates_anew(config.text.max_position_embeddings + 1)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, P, D]``."""
        if self._vision is None:
            raise ConfigError("no vision graph was opened, but an image was given; give --first_model_path")
        return self._vision.run([pixels])[0]

    def embed(
        self, token_ids: Tensor, source: Tensor, features: Tensor | None, blend: tuple[Tensor, Tensor] | None = None
    ) -> PlannedRows:
        """The rows of a splice plan: ``[B, L]`` twice, ``[N, P, D]`` and the plan's blend. The graph embeds them."""
        width = self.config.text.hidden_size
        rows = self._nothing if features is None else features.reshape([-1, width])
        return PlannedRows(token_ids, source, rows, blend or self._no_blend, width)

    def score_next(
        self, rows: PlannedRows, positions: Tensor, mask: Mask, cache: Cache | None, ends: Tensor | None = None
    ) -> Tensor:
        """Scores float32 ``[B, V]`` of the token behind ``rows``, which the cache takes in (``models.answering``)."""
        batch, length = rows.source.shape
        cache = self.new_cache(batch) if cache is None else cache
        self._require_window(mask, length)
        starts = paddle.zeros([batch], dtype="int64") if mask.key_starts is None else mask.key_starts
        offset = paddle.full([batch], mask.offset, "int64") if isinstance(mask.offset, int) else mask.offset
        if ends is None:
            ends = paddle.arange(length - 1, batch * length, length)
        piece = length if self._in_one_piece else PIECE
        if length <= piece:
            return self._run(rows, positions, offset, starts, ends, cache)
        firsts = paddle.arange(batch)
        columns = ends - firsts * length
        scores = None
        for begin in range(0, length, piece):
            end = min(begin + piece, length)
            own = paddle.clip(columns - begin, 0, end - begin - 1) + firsts * (end - begin)
            part = (slice(None), slice(begin, end))
            found = self._run(rows[part], positions[part], offset + begin, starts, own, cache)
            # A row that is padded on the right ends in a piece before the last one.
            scores = found if scores is None else paddle.where((columns >= begin).unsqueeze(1), found, scores)
        return scores

    def _run(
        self, rows: PlannedRows, positions: Tensor, offset: Tensor, starts: Tensor, ends: Tensor, cache: Cache
    ) -> Tensor:
        """One run of the graph; its keys and values go into the cache."""
        batch, length = rows.source.shape
        layers = range(self.config.text.num_hidden_layers)
        held = [self._held(cache, layer, batch) for layer in layers]
        given = [rows.token_ids, rows.source, rows.features, *rows.blend, positions, offset, starts, ends]
        scores, *new = self._text.run([*given, *(keys for keys, _ in held), *(values for _, values in held)])
        if length > 1 or not _put(cache, new):
            for layer in layers:
                cache.append(layer, new[layer], new[len(layers) + layer])
        cache.advance(length)
        return scores

    def new_cache(self, batch: int, capacity: int = 0) -> KVCache:
        """An empty KV cache for ``batch`` rows, with room for ``capacity`` places from the start."""
        return KVCache(self.config.text, batch, self.dtype, capacity, runtime=self.runtime)

    def new_static_cache(self, capacity: int) -> StaticCache:
        """An empty KV cache of a fixed size, whose rows have lengths of their own; the first step says how many."""
        return StaticCache(self.config.text.num_hidden_layers, capacity, self.dtype, self.runtime)

    def _held(self, cache: Cache, layer: int, batch: int) -> tuple[Tensor, Tensor]:
        found = cache.held(layer)
        if found is None:
            empty = self._empty if batch == 1 else self._empty.expand([batch, -1, -1, -1])
            return empty, empty
        return found

    def _require_window(self, mask: Mask, length: int) -> None:
        window = self.config.text.sliding_window
        if window is None:
            return
        end = int(np.max(np.asarray(mask.offset))) + length
        if end > window:
            raise ConfigError(
                f"sequence of {end} places: this model sees only the last {window} (sliding_window), which is not "
                "supported; shorten the conversation"
            )


def _put(cache: Cache, new: list[Tensor]) -> bool:
    """Write a step, keys ``[B, 1, Hk, D]`` of all layers and then values, in one go; False: ``append`` has to."""
    room = cache.room() if cache.heads_first else None
    if room is None:
        return False
    return few_rows.put([keys for keys, _ in room] + [values for _, values in room], new, cache.offset)


def require_device(facts: Facts, kind: str) -> None:
    """BackendError when a graph that was traced for one kind of device is to run on another."""
    if kind != facts.device and (facts.device, kind) != ("cpu", "gpu"):
        raise BackendError(
            f"{facts.part} was exported on a device {facts.device}, and {kind} is to run it: its operators were chosen "
            f"there. Export it again where it is to run, or use --device {facts.device}"
        )
