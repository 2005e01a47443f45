# SPDX-License-Identifier: Apache-2.0
"""Clipping by the norm of all gradients of the run, wherever they lie, and that norm for the log.

Paddle has a clip class for each strategy; none of them tells the norm, and one of them needs operators that an NPU
lacks in bfloat16. This one serves all: it is called right before the update, when the gradients of the processes have
been summed, and adds up what each process holds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import paddle
from paddle import Tensor
from paddle.nn.clip import GradientClipBase

from paddlemix.trainer.library import TrainingArguments


@dataclass(frozen=True)
class Spread:
    """How many processes there are, and how many of them divide the parameters and the gradients among themselves."""

    world: int = 1
    sharding: int = 1
    tensor_parallel: int = 1

    def copies(self, parameter: Tensor) -> int:
        """Number of processes that hold this very gradient (any shape, dtype) before the update."""
        count = self.world
        if getattr(parameter, "is_distributed", False):  # a slice in tensor parallel
            count //= self.tensor_parallel
        if not getattr(parameter, "unslice", False):  # paddle's mark for what stage3 leaves whole on every process
            count //= self.sharding
        return count

    @property
    def divided(self) -> bool:
        """Whether a process sees a part of the gradients only."""
        return self.sharding > 1 or self.tensor_parallel > 1


class GlobalNormClip(GradientClipBase):
    """Scales all gradients by ``max_norm / norm`` where their common norm is larger; ``max_norm`` 0 measures only.

    ``note`` is given the norm before clipping, the same on every process; what it raises ends the run before the
    update. No subclass of paddle's ClipGradByGlobalNorm, which the strategies would replace by theirs.
    """

    def __init__(self, max_norm: float, spread: Spread | None = None, note: Callable[[float], None] | None = None):
        super().__init__()
        self.max_norm = max_norm
        self.spread = spread or Spread()
        self.note = note

    @paddle.no_grad()
    def _dygraph_clip(self, params_grads: list[tuple[Tensor, Tensor | None]]) -> list[tuple[Tensor, Tensor | None]]:
        norm = global_norm([(parameter, grad) for parameter, grad in params_grads if grad is not None], self.spread)
        if self.note is not None:
            self.note(float(norm))
        if self.max_norm <= 0:
            return params_grads
        largest = paddle.full([], self.max_norm, dtype="float32")
        factor = largest / paddle.maximum(norm, largest)
        gradients = [grad for _, grad in params_grads if grad is not None]
        if paddle.get_device() == "cpu":  # a number is ten times as fast there as a tensor of one, and nothing waits
            number = float(factor)
            for grad in gradients if number != 1.0 else []:
                grad.scale_(number)
            return params_grads
        for grad in gradients:
            grad.multiply_(factor.astype(grad.dtype))
        return params_grads


@paddle.no_grad()
def global_norm(held: list[tuple[Tensor, Tensor]], spread: Spread) -> Tensor:
    """Norm of all gradients of the run, a float32 scalar on the device, from the (parameter, gradient) held here."""
    squares: dict[int, list[Tensor]] = {}
    for parameter, grad in held:
        wide = grad if grad.dtype == paddle.float32 else grad.astype("float32")
        square = paddle._C_ops.squared_l2_norm(wide)
        squares.setdefault(spread.copies(parameter), []).append(square.reshape([]))
    sums = [(copies, paddle.stack(found).sum()) for copies, found in sorted(squares.items())]
    if not spread.divided:
        return paddle.sqrt(sums[0][1]) if sums else paddle.zeros([], dtype="float32")
    total = sum((found / copies for copies, found in sums), paddle.zeros([], dtype="float32"))
    paddle.distributed.all_reduce(total)
    return paddle.sqrt(total)


def of_arguments(args: TrainingArguments) -> Spread:
    """The spread of a run, from PaddleNLP's TrainingArguments."""
    sharding = args.sharding_parallel_degree if args.sharding else 1
    return Spread(args.world_size, max(sharding, 1), max(args.tensor_parallel_degree, 1))
