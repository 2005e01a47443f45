# SPDX-License-Identifier: Apache-2.0
"""Files of weights: safetensors, torch's .bin, Paddle's .pdparams, read without executing anything.

``source.open_folder`` makes a folder one source of named tensors, whichever format its files have.
"""
