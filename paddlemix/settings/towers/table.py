# SPDX-License-Identifier: Apache-2.0
"""The table of vision towers by ``VisionConfig.model_type``: a new one is an import and a line here."""

from collections.abc import Iterator

from paddlemix.settings.key_rows import spelled_out
from paddlemix.settings.towers import clip, eva_clip, intern_vit, siglip
from paddlemix.settings.towers.base import Tower
from paddlemix.utils.registry import Registry

TOWERS: Registry[Tower] = Registry("vision tower")
LLAVA_TOWER = clip.TOWER
"""The tower of a config.json that does not say which."""
LLAVA_HF_VISION = {"model_type": clip.TOWER.type_in_file, **clip.CLIP_LARGE_336}
"""The ``vision_config`` of a llava-hf config.json without one, of the types ``llava`` and ``llava_next``."""
ONEVISION_HF_VISION = {
    "model_type": siglip.TOWER.type_in_file,
    **siglip.SO400M,
    "num_hidden_layers": 26,
    "image_size": 384,
}
"""The same of the type ``llava_onevision``: SigLIP without its last layer, which LLaVA takes no features of."""


def register(tower: Tower) -> None:
    """Enter a tower. ValueError when its names would be read as another tower's."""
    known = {there: here for other in towers() for there, here in _names(other)}
    for there, here in _names(tower):
        if known.get(there, here) != here:
            raise ValueError(
                f"vision tower {tower.kind!r}: {there} is {here}, but another tower calls it {known[there]}"
            )
    TOWERS.add(tower.kind)(tower)


def towers() -> list[Tower]:
    """All towers, in the order of their registration."""
    return [TOWERS.get(kind) for kind in TOWERS]


def _names(tower: Tower) -> Iterator[tuple[str, str]]:
    for row in tower.rows:
        for there, here in spelled_out(row):
            yield f"{tower.published_prefix}{there}", f"{tower.prefix}{here}"


for _tower in (clip.TOWER, eva_clip.TOWER, intern_vit.TOWER, siglip.TOWER):
    register(_tower)
