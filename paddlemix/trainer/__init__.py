# SPDX-License-Identifier: Apache-2.0
"""A training run from its settings to its result folder. The only room that imports paddlenlp.

Begin with ``run.finetune``: inputs are opened and checked, then weights are loaded, then ``llava_trainer`` trains.
"""
