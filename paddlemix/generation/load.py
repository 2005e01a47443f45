# SPDX-License-Identifier: Apache-2.0
"""A folder or a known name in, a conversation out."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from paddlemix.generation.lockstep import lead, require_no_beams
from paddlemix.generation.predictor import Predictor
from paddlemix.generation.sampling import Decoding
from paddlemix.generation.session import ChatSession

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from paddlemix.generation.predictor import Opening


def load_predictor(path: str | Path, *, cards: int = 1, **opening: "Unpack[Opening]") -> Predictor:
    """What asks the model in ``path``; ``opening`` as ``Predictor.load`` has it.

    ``cards`` of this machine share the model (tensor parallel): the first ones of the kind that ``device`` names. A
    process is started for each but the first.
    """
    return Predictor.load(path, **opening) if cards == 1 else lead(path, cards, **opening)


def load_chat(
    path: str,
    *,
    cards: int = 1,
    decoding: Decoding | None = None,
    system: str | None = None,
    context: int | None = None,
    note: Callable[[str], None] | None = None,
    **opening: "Unpack[Opening]",
) -> ChatSession:
    """A session with the model in ``path``, which ``load_predictor(path, cards=cards, **opening)`` opens.

    Sampling is what ``decoding`` says: of a folder's ``generation_config.json`` only the ending ids are taken.
    """
    if cards > 1 and decoding is not None:
        require_no_beams(decoding)
    predictor = load_predictor(path, cards=cards, **opening)
    return ChatSession(predictor, decoding=decoding, system=system, context=context, note=note)
