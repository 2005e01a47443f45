# SPDX-License-Identifier: Apache-2.0
"""A folder or a known name in, a conversation out."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from paddlemix.generation.predictor import Opening


def load_chat(
    path: str,
    *,
    decoding: Decoding | None = None,
    system: str | None = None,
    context: int | None = None,
    note: Callable[[str], None] | None = None,
    **opening: "Unpack[Opening]",
) -> ChatSession:
    """A session with the model in ``path``, which ``Predictor.load(path, **opening)`` opens.

    Sampling is what ``decoding`` says: of a folder's ``generation_config.json`` only the ending ids are taken.
    """
    return ChatSession(Predictor.load(path, **opening), decoding=decoding, system=system, context=context, note=note)
