# SPDX-License-Identifier: Apache-2.0
"""The keys of preference tuning. They act in ``paddlemix preference_tune`` alone; names and defaults are TRL's."""

from dataclasses import dataclass

from paddlemix.settings.run.keys import key

WITH_REFERENCE = ("sigmoid", "hinge", "ipo", "kto")
"""Losses that compare the policy with a frozen reference."""
LOSSES = (*WITH_REFERENCE, "simpo", "orpo")
UNPAIRED = "kto"
"""The loss of single answers; all others take pairs."""


@dataclass(frozen=True)
class PreferenceGroup:
    """Which loss prefers one answer to another, and by how much."""

    loss_type: str | None = key(
        None, "Loss of preference tuning: DPO's sigmoid, hinge or ipo; simpo, orpo, kto. null: no preference tuning.",
        choices=LOSSES, meant=(("dpo", "sigmoid"), ("slic", "hinge")),
    )  # fmt: skip
    beta: float = key(0.1, "Strength of the preference: distance to the reference; orpo: weight of the odds.", above=0)
    label_smoothing: float = key(0.0, "Share of pairs that are taken to be labelled the wrong way round.",
                                 low=0, high=0.499)  # fmt: skip
    simpo_gamma: float = key(0.5, "Margin that simpo wants between the two answers, in units of the loss.", low=0)
    rpo_alpha: float = key(0.0, "Weight of the cross entropy of the chosen answers beside the loss; 0: none.", low=0)
    desirable_weight: float = key(1.0, "kto: weight of the desirable answers.", above=0)
    undesirable_weight: float = key(1.0, "kto: weight of the undesirable answers.", above=0)
    precompute_ref_log_probs: bool = key(
        False, "Compute the reference's log-probabilities of all rows before the run and keep them in output_dir."
    )

    @property
    def answers(self) -> int:
        """Rows that the model computes with a gradient for each row of the data."""
        return 1 if self.loss_type in (None, UNPAIRED) else 2

    @property
    def reference(self) -> bool:
        """Whether the loss has a reference."""
        return self.loss_type in WITH_REFERENCE
