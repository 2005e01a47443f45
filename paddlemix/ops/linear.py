# SPDX-License-Identifier: Apache-2.0
"""Linear layers: the plain one, and the one with a low-rank addition (LoRA)."""

import contextlib
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.nn import functional

from paddlemix.ops import few_rows
from paddlemix.ops.low_bits.weights import Weights
from paddlemix.ops.parallel import Share, count_of, cut, is_shared, mark, whole_shape
from paddlemix.utils.errors import ConfigError

TINY = 1e-30
"""Least length of a column that DoRA divides by: a column of zeros stays one."""


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x`` [..., in] times ``weight`` [in, out] plus ``bias`` [out], of one dtype, to [..., out].

    Without a bias the product is called itself: functional.linear costs 8 us more in each call.
    """
    few = few_rows.product(x, weight)
    if few is not None:
        return few if bias is None else few + bias
    if bias is None:
        return paddle.matmul(x, weight)
    many = few_rows.biased(x, weight, bias)
    return functional.linear(x, weight, bias) if many is None else many


class Linear(nn.Layer):
    """``x W + b`` with the weight as ``[in, out]``.

    Tensor parallel: with a share as ``out_features`` this device computes some of the columns, from an input that went
    through ``TensorParallel.enter``. With a share as ``in_features`` it holds some of the rows, and the sum over the
    devices is taken here; the bias is then whole, and added once.

    ``hold`` gives it a weight of few bits (``ops.low_bits``); ``weight`` is None then, and nothing of it trains.
    """

    low_bits: Weights | None = None

    def __init__(self, in_features: int | Share, out_features: int | Share, bias: bool = True) -> None:
        super().__init__()
        self.rows, self.columns = in_features, out_features
        self.in_features, self.out_features = count_of(in_features), count_of(out_features)
        self.weight = self.create_parameter([self.in_features, self.out_features])
        self.bias = self.create_parameter([self.out_features], is_bias=True) if bias else None
        mark(self.weight, 0, in_features)
        mark(self.weight, 1, out_features)
        mark(self.bias, 0, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, in the dtype of the weight."""
        if self.low_bits is not None:
            return self.low_bits.product(x, self.bias)
        if not self.sums:
            return apply_linear(x, self.weight, self.bias)
        out = self.rows.parallel.product(x, self.weight, even=self.rows.even)
        return out if self.bias is None else out + self.bias

    def hold(self, weights: Weights) -> None:
        """Compute with ``weights`` (of this layer's shape) from now on, and give the parameter up."""
        self.low_bits = weights
        self.weight = None

    def products(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Pairs of rows [N, K] and weight [K, out] that add up to ``x W`` for ``x`` [N, in] (not with DoRA)."""
        return [(x, self.weight)]

    @property
    def sums(self) -> bool:
        """Whether other devices hold the other rows of the weight."""
        return is_shared(self.rows)

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"in={self.in_features}, out={self.out_features}, bias={self.bias is not None}"


class LoraLinear(Linear):
    """A linear layer plus ``dropout(x) A B * scaling``; A is ``[in, r]``, B is ``[r, out]`` and starts at zero.

    ``scaling`` is ``alpha / r``; with ``rslora`` it is ``alpha / sqrt(r)`` (rank-stabilised LoRA, Kalajdzievski 2023),
    as peft's ``use_rslora``.

    ``dora`` (Liu et al. 2024, arXiv 2402.09353; peft's ``use_dora``): each column of ``W + A B * scaling`` gets
    the length that ``lora_magnitude_vector`` ``[out]`` has for it. The lengths that it has by itself count as constants
    in the backward pass (section 4.3 of the paper).

    ``pissa`` (Meng et al. 2024, arXiv 2404.02948): A and B begin as the principal part of the weight, which the weight
    has to lose. Here the weight stays as it is and ``lora_start_A lora_start_B * scaling``, what A and B began with, is
    taken off the sum: the same function, and without its adapter the layer is that of the base.

    It takes over the parameters of ``base`` (no copy), so ``weight`` and ``bias`` keep their names and their memory.
    ``begin=False``: all of its own are about to be loaded, so the weight is not looked at.
    """

    def __init__(
        self,
        base: Linear,
        r: int,
        alpha: float,
        dropout: float = 0.0,
        seed: int = 0,
        rslora: bool = False,
        *,
        dora: bool = False,
        pissa: bool = False,
        begin: bool = True,
    ) -> None:
        nn.Layer.__init__(self)
        self.rows, self.columns = base.rows, base.columns
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight, self.bias = base.weight, base.bias
        self.r, self.alpha, self.rslora, self.dora, self.pissa = r, alpha, rslora, dora, pissa
        self.scaling = alpha / (math.sqrt(r) if rslora else r)
        self.dropout = dropout
        self.merged, self.off = False, False
        self.lora_A, self.lora_B = self._pair()
        if pissa:
            self.lora_start_A, self.lora_start_B = self._pair()
            self.lora_start_A.stop_gradient = self.lora_start_B.stop_gradient = True
        # Kaiming-uniform with a = sqrt(5) over the fan-in, which is what peft starts from.
        width = whole_shape(self.lora_A)[0]
        bound = 1.0 / math.sqrt(width)
        start = np.random.default_rng(seed).uniform(-bound, bound, [width, r]).astype(np.float32)
        self._set(self.lora_A, start)
        if dora:
            self.lora_magnitude_vector = self._new([self.out_features])
            mark(self.lora_magnitude_vector, 0, self.columns)
            if begin:
                self.lora_magnitude_vector.set_value(self.column_norms().astype(self.weight.dtype))

    def _pair(self) -> tuple[Tensor, Tensor]:
        a, b = self._new([self.in_features, self.r]), self._new([self.r, self.out_features])
        mark(a, 0, self.rows)
        mark(b, 1, self.columns)
        return a, b

    def _new(self, shape: list[int]) -> Tensor:
        # The initializer is named: paddle 3.0 has no default one for paddle.bfloat16, only for the text "bfloat16".
        zero = nn.initializer.Constant(0.0)
        return self.create_parameter(shape, dtype=self.weight.dtype, default_initializer=zero)

    @staticmethod
    def _set(parameter: Tensor, values: np.ndarray) -> None:
        own = np.ascontiguousarray(cut(parameter, values), np.float32)
        parameter.set_value(paddle.to_tensor(own).astype(parameter.dtype))

    @paddle.no_grad()
    def begin_with(self, a: np.ndarray, b: np.ndarray) -> None:
        """Let a ``pissa`` layer begin with A = ``a`` [in, r] and B = ``b`` [r, out], float32, of the whole weight."""
        for pair in ((self.lora_A, self.lora_B), (self.lora_start_A, self.lora_start_B)):
            for parameter, values in zip(pair, (a, b), strict=True):
                self._set(parameter, values)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., out]``, in the dtype of the weight."""
        out = super().forward(x)
        if self.merged or self.off:
            return out
        drops = self.dropout > 0 and self.training
        kept = functional.dropout(x, self.dropout) if drops else x
        if self.pissa:
            out = out - self._start(x)
        low = self._low(kept, self._matrix_a(self.lora_A), self.lora_B)
        if not self.dora:
            return out + low
        factor = (self.lora_magnitude_vector.astype("float32") / self.column_norms()).astype(out.dtype)
        if drops:
            plain = self._product(kept)
            plain = plain - self._start(kept) if self.pissa else plain
        else:
            plain = out if self.bias is None else out - self.bias
        return out + (factor - 1.0) * plain + factor * low

    def products(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """As ``Linear`` has it for ``x`` [N, in]; A B is a pair of its own."""
        whole = super().products(x)
        if self.merged or self.off:
            return whole
        kept = functional.dropout(x, self.dropout) if self.dropout > 0 and self.training else x
        whole.append((self._narrow(kept, self._matrix_a(self.lora_A)) * self.scaling, self.lora_B))
        if self.pissa:
            whole.append((self._narrow(x, self.lora_start_A) * -self.scaling, self.lora_start_B))
        return whole

    def _low(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """``x A B * scaling``, the sum over the devices where they share the rows."""
        return paddle.matmul(self._narrow(x, a) * self.scaling, b)

    def _narrow(self, x: Tensor, a: Tensor) -> Tensor:
        low = paddle.matmul(x, a)
        return self.rows.parallel.sum_over_ranks(low) if self.sums else low

    def _start(self, x: Tensor) -> Tensor:
        return self._low(x, self.lora_start_A, self.lora_start_B)

    def _product(self, x: Tensor) -> Tensor:
        """``x W`` without the bias."""
        if self.sums:
            return self.rows.parallel.product(x, self.weight, even=self.rows.even)
        return paddle.matmul(x, self.weight)

    def _matrix_a(self, a: Tensor) -> Tensor:
        """A; where the columns of the weight are shared, each device sees a part of A's gradient, so it is summed."""
        return self.columns.parallel.copy_to_ranks(a) if is_shared(self.columns) else a

    @paddle.no_grad()
    def delta(self) -> Tensor:
        """What A and B add to this device's part of the weight: float32 ``[in, out]``."""
        added = paddle.matmul(self.lora_A.astype("float32"), self.lora_B.astype("float32"))
        if self.pissa:
            added -= paddle.matmul(self.lora_start_A.astype("float32"), self.lora_start_B.astype("float32"))
        return added * self.scaling

    @paddle.no_grad()
    def column_norms(self) -> Tensor:
        """Length of each column of the weight with ``delta``, over all devices: float32 ``[out]``, above 0."""
        squares = (self.weight.astype("float32") + self.delta()).square().sum(axis=0)
        if self.sums:
            squares = self.rows.parallel.reduce(squares)
        return squares.sqrt().clip(min=TINY)

    @paddle.no_grad()
    def merge(self) -> None:
        """Fold the adapter into the weight. Does nothing when it is folded in already. ConfigError: few bits."""
        if self.merged:
            return
        if self.low_bits is not None:
            raise ConfigError(f"an adapter cannot be folded into a weight of {self.low_bits.bits} bits; keep it beside")
        whole = self.weight.astype("float32") + self.delta()
        if self.dora:
            self._factor = self.lora_magnitude_vector.astype("float32") / self.column_norms()
            whole *= self._factor
        self.weight.set_value(whole.astype(self.weight.dtype))
        self.merged = True

    @paddle.no_grad()
    def unmerge(self) -> None:
        """Take the adapter out of the weight again, to rounding. ValueError when DoRA has made a column zero."""
        if not self.merged:
            return
        whole = self.weight.astype("float32")
        if self.dora:
            if bool((self._factor == 0).any()):
                raise ValueError("a column whose magnitude is 0 cannot be taken out of the weight; load the base again")
            whole /= self._factor
        self.weight.set_value((whole - self.delta()).astype(self.weight.dtype))
        self.merged = False


class Fused:
    """Several plain Linear layers of one input as one matrix product, for inference.

    It takes the memory of their parameters over (a parameter has none until ``release``), so a model is never held
    twice. A plain object and no Layer: what it holds is no parameter and has no name in a checkpoint.
    """

    def __init__(self, layers: Sequence[Linear]) -> None:
        self.layers = list(layers)
        self.widths = [layer.out_features for layer in layers]
        held = [layer.low_bits for layer in layers]
        self.low_bits = None if held[0] is None else type(held[0])([part for one in held for part in one.parts])
        if self.low_bits is not None:  # the codes stay where they are, and the biases are small
            self.bias = None if layers[0].bias is None else paddle.concat([layer.bias for layer in layers]).detach()
            return
        self.weight = paddle.concat([layer.weight for layer in layers], axis=1).detach()
        has_bias = layers[0].bias is not None
        self.bias = paddle.concat([layer.bias for layer in layers]).detach() if has_bias else None
        for layer in layers:
            for parameter in layer.parameters():
                parameter._clear_data()

    @staticmethod
    def can(layers: Sequence[Linear]) -> bool:
        """True for plain layers (an adapter that is not merged stays apart, and so do the codes on a card)."""
        held = [layer.low_bits for layer in layers]
        alike = not any(held) or all(one is not None and one.parts for one in held)
        return alike and all(type(layer) is Linear for layer in layers)

    def serves(self, x: Tensor) -> bool:
        """Whether one product is better for ``x`` [..., in] than those of the layers.

        Not for many rows and weights of few bits: they go portion by portion anyway, and what was joined would be
        copied again to be cut.
        """
        return self.low_bits is None or self.low_bits.joins(x)

    def __call__(self, x: Tensor) -> Tensor:
        """``[..., in]`` to ``[..., sum of out]``, in the order of the layers."""
        if self.low_bits is not None:
            return self.low_bits.product(x, self.bias)
        return apply_linear(x, self.weight, self.bias)

    def release(self) -> None:
        """Give every layer its parameters back."""
        if self.low_bits is not None:
            return
        for index, layer in enumerate(self.layers):
            first = sum(self.widths[:index])
            last = first + self.widths[index]
            share_memory(layer.weight, self.weight[:, first:last].contiguous())
            if self.bias is not None:
                share_memory(layer.bias, self.bias[first:last].contiguous())


def share_memory(parameter: Tensor, values: Tensor) -> None:
    """Give ``parameter`` the memory of ``values``, without a copy: any shape and dtype, the same of both."""
    parameter.get_tensor()._share_data_with(values.get_tensor())


def add_lora(
    model: nn.Layer,
    target_patterns: Sequence[str],
    r: int,
    alpha: float,
    dropout: float = 0.0,
    seed: int = 0,
    rslora: bool = False,
    *,
    dora: bool = False,
    pissa: bool = False,
    begin: bool = True,
) -> list[str]:
    """Put a LoraLinear in place of every Linear whose module name fully matches one of the regular expressions.

    Returns the names, in the model's order. ConfigError when a pattern is no regular expression, matches nothing, or
    matches no Linear, or when projections are joined for inference. Other modules that match (a pattern may end in
    ``.*``) are passed over. Which parameters train is not decided here. With ``pissa`` the layers wait for
    ``begin_with``. The other arguments: see ``LoraLinear``.
    """
    if not isinstance(r, int) or r < 1:
        raise ConfigError(f"lora_rank must be a whole number of at least 1, got {r!r}")
    modules = dict(model.named_sublayers())
    chosen: set[str] = set()
    for pattern in target_patterns:
        found = _matching(pattern, list(modules))
        linear = [name for name in found if isinstance(modules[name], Linear)]
        if not linear:
            raise ConfigError(_no_target(pattern, found, modules))
        chosen.update(linear)
    names = [name for name in modules if name in chosen]
    for name in names:
        if isinstance(modules[name], LoraLinear):
            raise ConfigError(f'LoRA: "{name}" has an adapter already; merge it first')
        if getattr(modules.get(name.rpartition(".")[0]), "fused", None) is not None:
            raise ConfigError(f'LoRA: the weights beside "{name}" are joined for inference; call train() first')
        own_seed = zlib.crc32(name.encode()) ^ seed
        method = {"rslora": rslora, "dora": dora, "pissa": pissa, "begin": begin}
        layer = LoraLinear(modules[name], r, alpha, dropout, seed=own_seed, **method)
        _replace(model, name, layer)
    return names


def merge_lora(model: nn.Layer) -> list[str]:
    """Fold every adapter into its weight and put plain Linear layers back. Returns the names of the layers."""
    names = []
    for name, layer in list(lora_layers(model)):
        layer.merge()
        plain = Linear.__new__(Linear)
        nn.Layer.__init__(plain)
        plain.rows, plain.columns = layer.rows, layer.columns
        plain.in_features, plain.out_features = layer.in_features, layer.out_features
        plain.weight, plain.bias = layer.weight, layer.bias
        _replace(model, name, plain)
        names.append(name)
    return names


def linear_layers(model: nn.Layer) -> Iterator[tuple[str, Linear]]:
    """(name, layer) of every linear layer, with an adapter or without."""
    return ((name, layer) for name, layer in model.named_sublayers() if isinstance(layer, Linear))


def lora_layers(model: nn.Layer) -> Iterator[tuple[str, LoraLinear]]:
    """(name, layer) of every layer that carries an adapter."""
    for name, layer in model.named_sublayers():
        if isinstance(layer, LoraLinear):
            yield name, layer


@contextlib.contextmanager
def adapters_off(model: nn.Layer, originals: Mapping[str, Tensor] | None = None) -> Iterator[None]:
    """Within the block ``model`` computes without its adapters, of every method: as the base does.

    Parts that train whole beside the adapters are no adapters. ``originals``: values (any shape, dtype; those of the
    parameters of the same names) that take their place within the block; nothing is copied. Only for passes without
    gradients. ValueError when an adapter is merged into its weight.
    """
    layers = [layer for _, layer in lora_layers(model)]
    if any(layer.merged for layer in layers):
        raise ValueError("an adapter that is merged into its weight cannot be switched off; unmerge it first")
    parameters = dict(model.named_parameters())
    swapped = [(parameters[name], values) for name, values in (originals or {}).items()]
    before = [layer.off for layer in layers]
    kept = []
    try:
        for layer in layers:
            layer.off = True
        for parameter, values in swapped:
            kept.append(paddle.empty([0], dtype=parameter.dtype))
            share_memory(kept[-1], parameter)
            share_memory(parameter, values)
        yield
    finally:
        for (parameter, _), own in zip(swapped, kept, strict=False):
            share_memory(parameter, own)
        for layer, value in zip(layers, before, strict=True):
            layer.off = value


def _matching(pattern: str, names: list[str]) -> list[str]:
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f'LoRA target "{pattern}" is not a regular expression: {error}') from error
    return [name for name in names if rule.fullmatch(name)]


def _no_target(pattern: str, found: list[str], modules: dict[str, nn.Layer]) -> str:
    if found:
        return (
            f'LoRA target "{pattern}" matches {len(found)} modules but no linear layer '
            f"(first: {found[0]}, {type(modules[found[0]]).__name__}); let it end at q_proj, gate_proj, ..."
        )
    linear = [name for name, layer in modules.items() if isinstance(layer, Linear)]
    example = linear[len(linear) // 2] if linear else "none"
    return f'LoRA target "{pattern}" matches no module (the whole name must match; a linear layer here: {example})'


def _replace(model: nn.Layer, name: str, layer: nn.Layer) -> None:
    parent_name, _, leaf = name.rpartition(".")
    parent = model
    for part in parent_name.split(".") if parent_name else []:
        parent = getattr(parent, part)
    layer.training = parent.training
    setattr(parent, leaf, layer)
