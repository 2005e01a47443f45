# SPDX-License-Identifier: Apache-2.0
"""The losses of preference tuning: DPO (sigmoid, hinge, IPO), SimPO, ORPO and KTO, as functions of log-probabilities.

P is the number of pairs (of rows for KTO). Every argument that is a tensor is float32 [P]: the log-probability of an
answer given its prompt, summed over the answer's tokens or, where a name ends in ``mean``, divided by their number.
Each function gives the losses float32 [P]; a run takes their mean. All of it is float32: the differences are small
beside the sums.
"""

import math

import paddle
from paddle import Tensor
from paddle.nn import functional

SIGMOID, HINGE, IPO, SIMPO, ORPO, KTO = "sigmoid", "hinge", "ipo", "simpo", "orpo", "kto"
_NO_LOG_ODDS_ABOVE = -1e-6
"""An answer of probability 1 has infinite odds; the mean log-probability is held below."""


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO: ``-log sigmoid(beta (chosen - rejected))`` [P] (Rafailov et al. 2023, arXiv 2305.18290, eq. 7).

    ``chosen`` and ``rejected`` [P] are log-ratios: log-probability by the policy minus that by the reference.
    ``label_smoothing`` is the share of pairs that are taken to be labelled the wrong way round (conservative DPO, eq. 3
    of Mitchell's note of 2023).
    """
    margin = beta * (chosen - rejected)
    return -_smoothed(margin, label_smoothing)


def hinge_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """``max(0, 1 - beta (chosen - rejected))`` [P] on log-ratios [P] (SLiC, Zhao et al. 2023, arXiv 2305.10425).

    SLiC itself has no reference; as in TRL the hinge stands on DPO's margin (RSO, Liu et al. 2023, arXiv 2309.06657).
    """
    return functional.relu(1.0 - beta * (chosen - rejected))


def ipo_loss(chosen_mean: Tensor, rejected_mean: Tensor, beta: float) -> Tensor:
    """``(chosen - rejected - 1 / (2 beta))^2`` [P] (Azar et al. 2023, arXiv 2310.12036, eq. 17, beta is its tau).

    The log-ratios [P] are means over the tokens of an answer, as in TRL, whose authors had it from those of the paper;
    the paper's text has sums.
    """
    return (chosen_mean - rejected_mean - 1.0 / (2.0 * beta)) ** 2


def simpo_loss(
    chosen_mean: Tensor, rejected_mean: Tensor, beta: float, gamma: float, label_smoothing: float = 0.0
) -> Tensor:
    """``-log sigmoid(beta (chosen - rejected) - gamma)`` [P] (Meng et al. 2024, arXiv 2405.14734, eq. 6).

    Mean log-probabilities [P] of the policy; there is no reference. The paper takes beta 2.0 to 2.5.
    """
    return -_smoothed(beta * (chosen_mean - rejected_mean) - gamma, label_smoothing)


def orpo_loss(chosen_mean: Tensor, rejected_mean: Tensor, beta: float) -> Tensor:
    """``-beta log sigmoid(log odds(chosen) - log odds(rejected))`` [P] (Hong et al. 2024, arXiv 2403.07691, eq. 6, 7).

    Mean log-probabilities [P] of the policy, beta is the paper's lambda. The cross entropy of the chosen rows, the
    other term of the paper, is added by the caller.
    """
    odds = chosen_mean - rejected_mean - (_log_of_the_rest(chosen_mean) - _log_of_the_rest(rejected_mean))
    return -beta * functional.log_sigmoid(odds)


def kto_loss(
    ratio: Tensor, desirable: Tensor, kl: Tensor, beta: float, desirable_weight: float, undesirable_weight: float
) -> Tensor:
    """KTO [P] (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 8): ``w (1 - sigmoid(+-beta (ratio - kl)))``.

    ``ratio`` [P] log-ratios of single answers, ``desirable`` [P] is 1 or 0; ``kl`` the estimate of the divergence (a
    scalar, at least 0, without a gradient) that the caller makes of mismatched pairs.
    """
    sign = 2.0 * desirable - 1.0
    weight = desirable * desirable_weight + (1.0 - desirable) * undesirable_weight
    return weight * (1.0 - functional.sigmoid(sign * beta * (ratio - kl)))


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    found = functional.log_sigmoid(margin)
    if not label_smoothing:
        return found
    return (1.0 - label_smoothing) * found + label_smoothing * functional.log_sigmoid(-margin)


def _log_of_the_rest(log_prob: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, by the form that is exact on its side of -log 2 (Maechler 2012, log1mexp)."""
    x = paddle.clip(log_prob, max=_NO_LOG_ODDS_ABOVE)
    border = -math.log(2.0)
    near = paddle.log(-paddle.expm1(paddle.clip(x, min=border)))
    far = paddle.log1p(-paddle.exp(paddle.clip(x, max=border)))
    return paddle.where(x > border, near, far)
