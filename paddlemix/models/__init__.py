# SPDX-License-Identifier: Apache-2.0
"""The networks: vision towers, projector, decoder, and ``llava.LlavaForCausalLM``, which joins them.

Begin with ``llava``; towers lie in ``vision``, decoders in ``llm``.
"""
