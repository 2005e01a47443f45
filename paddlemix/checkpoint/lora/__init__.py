# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters, ours and peft's: read, checked against their base, attached, saved and merged.

Begin with ``read.read_adapter`` (what an adapter is), then ``adapter.attach`` and ``merge.merge_adapter``.
"""
