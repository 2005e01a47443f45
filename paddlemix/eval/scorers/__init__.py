# SPDX-License-Identifier: Apache-2.0
"""Pure functions from questions and answers to scores; nothing here reads a file or a model."""
