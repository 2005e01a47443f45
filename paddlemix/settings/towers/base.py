# SPDX-License-Identifier: Apache-2.0
"""``Tower``: everything that the library has to know about a kind of vision tower, but its layers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from paddlemix.settings.key_rows import KeyRow

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Fact: TypeAlias = int | float | str | bool
Colour: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Start:
    """How new weights are drawn: names that end so get a normal distribution of ``std(width, depth)``."""

    ends: tuple[str, ...]
    std: Callable[[int, int], float]


@dataclass(frozen=True)
class Refused:
    """A published relative of a tower that is not supported: what it is known by, and what to say about it."""

    why: str
    type_prefix: str
    """``model_type`` of its config.json begins so."""
    key: str
    """A key that only its config.json has."""
    projectors: tuple[str, ...] = ()
    """``mm_projector_type`` of its chat models."""
    names: tuple[str, ...] = ()
    """Last parts of the names that chat models give it."""


@dataclass(frozen=True)
class Tower:
    """A kind of vision tower. Only ``kind`` to ``layers`` must be given; the rest says where it is not like CLIP's."""

    kind: str
    """``VisionConfig.model_type``: our name for it."""
    encoder: str
    """``module:Class`` of its layers (``models.vision.base.VisionEncoder``), imported when a model is built."""
    defaults: Mapping[str, int | float | str]
    """Sizes, ``hidden_act`` and ``layer_norm_eps``: what its configuration class takes where config.json is silent."""
    rows: tuple[KeyRow, ...]
    """Tensor names there (below ``published_prefix``) and here (below ``prefix``)."""
    layers: str
    """Our name of the stack of layers, with a dot behind: ``encoder.layers.``; a number follows it."""

    prefix: str = ""
    """What stands before all our names, below ``llama.vision_tower.vision_tower.``."""
    published_prefix: str = ""
    """What stands before all names in the tower's own folder, and in LLaVA's layout behind its own prefix."""
    form: str = ""
    """Way of naming tensors in the tower's own folder; towers whose folders look alike share one. Empty: ``kind``."""
    signature: tuple[str, ...] = ()
    """Beginnings of tensor names that tell ``form``, where no name of a whole model is there. Empty: by the rows."""
    hf_prefix: str | None = None
    """The same for llava-hf's layout, behind ``vision_tower.``; None when llava-hf has no such tower."""
    hf_5_prefix: str = ""
    """The same since transformers 5."""
    ignored_tensors: Mapping[str, str] = field(default_factory=dict)
    """Tensors of published folders that nobody needs: regular expression to reason."""

    file_type: str = ""
    """``model_type`` in its config.json where that is not ``kind``."""
    whole_type: str | None = None
    """``model_type`` of a config.json whose ``vision_config`` is the tower."""
    extra: Mapping[str, bool] = field(default_factory=dict)
    """Switches of config.json that only this kind has, with their defaults; they go to ``VisionConfig.extra``."""
    known_by_extra: bool = False
    """Another tower has the same ``file_type``; any key of ``extra`` in the file tells that it is this one."""
    joins_layers: bool = False
    """Whether the features of several layers can be joined (``settings.dense_connector``)."""
    activations: tuple[str, ...] = ("quick_gelu", "gelu")
    expected: Mapping[str, tuple[Fact, str]] = field(default_factory=dict)
    """Keys of which one value only is supported: the value, and why."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Keys that are read and not used: reason by name."""
    written: Mapping[str, Fact] = field(default_factory=dict)
    """Keys that its config.json is given when it is written, because other programs would assume something else."""
    has_code: bool = False
    """Published folders point to code of their own (``auto_map``), which is not needed here."""
    refused: tuple[Refused, ...] = ()

    published: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Published towers: what they have other than ``defaults``, for checkpoints that hold weights and no config.json
    of the tower. The weights decide in the end: a tower of another shape does not load."""
    known_by_last_part: bool = False
    """The last part of a name is enough, whoever stands before it."""
    weight_sizes: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    """Which axis of which tensor (our names below ``prefix``) is ``hidden_size``, ``intermediate_size``, ``patch_size``
    and ``positions``. With it, weights of a published tower are recognised without any config.json."""

    class_token: bool = True
    """Row 0 of the hidden states belongs to no patch."""
    position_table: str | None = None
    """Our name (below ``prefix``) of a position table that is resized to the image, so that a tile may have any size;
    its side stands in ``VisionConfig.extra["position_grid"]``. None: one position per patch."""
    tile_sides: Mapping[int, int] = field(default_factory=dict)
    """``image_size`` of config.json to the side of the tiles that chat models use, where they differ."""
    gguf: str | None = None
    """``general.architecture`` of its file for llama.cpp (``checkpoint.gguf``); None: it has no form there."""
    behind_layers: tuple[str, ...] = ()
    """Our names (beginnings, below ``prefix``) of what follows the last layer: no feature depends on it."""
    start: tuple[Start, ...] = ()
    start_std: float = 0.02
    """Where no row of ``start`` fits. Norms start as ones and biases as zeros everywhere."""
    start_constants: Mapping[str, float] = field(default_factory=dict)
    """Names that end so start with this number."""

    mean: Colour = IMAGENET_MEAN
    std: Colour = IMAGENET_STD
    """Of the normalised channels, for pixels from 0 to 1."""
    stretches: bool = False
    """Its own preprocessing stretches an image to the tile; else the short side is resized and the middle cut out."""
    reads_preprocessor: bool = True
    """Whether the original reads preprocessor_config.json for it; else side, mean and deviation are those above."""
    folder_wins: bool = False
    """The original takes the weights of the tower's folder even when the checkpoint holds the tower, too."""
    writable: bool = True
    """Whether other layouts than ours can hold it."""

    @property
    def type_in_file(self) -> str:
        """``model_type`` of its config.json."""
        return self.file_type or self.kind

    @property
    def form_name(self) -> str:
        """The form of its own folder."""
        return self.form or self.kind

    def start_std_of(self, name: str, width: int, depth: int) -> float:
        """Deviation of new weights called ``name``, in a tower of ``depth`` layers of ``width``."""
        for rule in self.start:
            if name.endswith(rule.ends):
                return rule.std(width, depth)
        return self.start_std

    def layer_of(self, name: str) -> int | None:
        """Number of the layer that a parameter (our name below ``llama.vision_tower.vision_tower.``) lies in."""
        head, _, rest = name.partition(f"{self.prefix}{self.layers}")
        number = rest.partition(".")[0]
        return int(number) if not head and number.isdigit() else None

    def is_behind_layers(self, name: str) -> bool:
        """Whether a parameter (as in ``layer_of``) comes after the last layer."""
        return any(name.startswith(f"{self.prefix}{part}") for part in self.behind_layers)
