# SPDX-License-Identifier: Apache-2.0
"""Answers that another model judges: LLaVA-Bench, LLaVA's 90 questions, MM-Vet."""
