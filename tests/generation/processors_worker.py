# SPDX-License-Identifier: Apache-2.0
"""Run by an interpreter with transformers: what its processors make of scores. Reads and writes JSON."""

import json
import sys

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

ROWS = []
for case in json.load(sys.stdin):
    steps = LogitsProcessorList()
    if case["logit_bias"]:
        steps.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in case["logit_bias"]]))
    if case["repetition_penalty"] != 1.0:
        steps.append(RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    steps.append(TemperatureLogitsWarper(case["temperature"]))
    if case["top_k"]:
        steps.append(TopKLogitsWarper(case["top_k"]))
    if case["top_p"] < 1.0:
        steps.append(TopPLogitsWarper(case["top_p"]))
    if case["min_p"]:
        steps.append(MinPLogitsWarper(case["min_p"]))
    seen = torch.tensor([case["seen"]], dtype=torch.int64).reshape(1, -1)
    scores = torch.tensor([case["scores"]], dtype=torch.float64)
    ROWS.append(torch.softmax(steps(seen, scores), dim=-1)[0].tolist())
print(json.dumps(ROWS))
