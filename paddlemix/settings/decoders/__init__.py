# SPDX-License-Identifier: Apache-2.0
"""Language models as data: what config.json says, class names, tensor names, biases, template, layers for LoRA.

One file describes one family (``base.Decoder`` lists the fields) and ``table.DECODERS`` holds them all; the layers
themselves are in ``models/llm``. docs/extending.md walks through adding one.
"""
