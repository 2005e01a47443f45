# SPDX-License-Identifier: Apache-2.0
"""A folder or a known name in, a conversation out: model, tokenizer, processor, template and device put together."""

from collections.abc import Callable

from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession


def load_chat(
    path: str,
    *,
    base: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    conv_mode: str | None = None,
    vision_tower: str | None = None,
    projector: str | None = None,
    decoding: Decoding | None = None,
    system: str | None = None,
    context: int | None = None,
    note: Callable[[str], None] | None = None,
) -> ChatSession:
    """A session with the model in ``path``: an original, llava-hf or own folder, a LoRA adapter, or a projector.

    ``base`` is needed only where the folder does not say (or no longer finds) what it belongs to. ``device`` and
    ``dtype`` None take the best there is (``utils.device.choose``). ``conv_mode`` replaces the folder's template;
    without it a PaddleNLP ``chat_template.json`` in the folder counts, else the name in its configuration.
    Sampling is what ``decoding`` says: of a folder's ``generation_config.json`` only the ending ids are taken.
    """
    predictor = Predictor.load(
        path, base=base, device=device, dtype=dtype, conv_mode=conv_mode, vision_tower=vision_tower, projector=projector
    )
    return ChatSession(predictor, decoding=decoding, system=system, context=context, note=note)
