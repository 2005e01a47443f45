# SPDX-License-Identifier: Apache-2.0
"""The architecture of a model as frozen data; ``settings/published/config.py`` makes it of any published config.json.

Letters: B batch, L merged length, T text tokens, N tiles, P patches, C vision width, D model width, H heads.
Sizes are (height, width) in pixels unless a name says otherwise.
"""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeAlias, TypeVar

from paddlemix.settings.decoders.table import DECODERS
from paddlemix.settings.dense_connector import NO_CONNECTOR, layers_side_by_side, more_rows
from paddlemix.settings.towers.clip import CLIP_MEAN, CLIP_STD
from paddlemix.settings.towers.table import TOWERS
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import JsonValue

T = TypeVar("T")
ConfigField: TypeAlias = "bool | int | float | str | tuple[Any, ...] | TextConfig | VisionConfig | ImageConfig | None"
"""Value of a field of ``LlavaConfig``."""


@dataclass(frozen=True)
class TextConfig:
    """The language model. ``model_type`` picks its description in ``settings/decoders``."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    model_type: str = "llama"
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    attention_bias: bool = False
    tie_word_embeddings: bool = False
    initializer_range: float = 0.02
    bos_token_id: int = 1
    eos_token_id: int = 2
    pad_token_id: int | None = None
    sliding_window: int | None = None

    @property
    def width_per_head(self) -> int:
        """Width of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def rotates_anew(self, length: int) -> bool:
        """Whether keys of a text that grows to ``length`` positions no longer fit: ``dynamic`` raises their base."""
        scaling = self.rope_scaling or {}
        grows = scaling.get("rope_type", scaling.get("type")) == "dynamic"
        return grows and length > self.max_position_embeddings

    def has_bias(self, projection: str) -> bool:
        """Whether ``q_proj``, ``k_proj``, ``v_proj`` or ``o_proj`` has a bias."""
        return DECODERS.get(self.model_type).has_bias(projection, self.attention_bias)


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower. ``model_type`` picks its description in ``settings/towers``, which names its class, too.

    ``image_size`` is the side of a tile. ``extra`` holds the switches of one family, and ``position_grid`` (in patches)
    where the position table has a side of its own and is resized to the tile. ``dense_connector`` is a kind of
    ``settings.dense_connector``: features of several layers.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    model_type: str = "clip_vision_model"
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    select_layer: int = -2
    select_feature: str = "patch"
    extra: dict[str, Any] = field(default_factory=dict)
    dense_connector: str = NO_CONNECTOR

    @property
    def grid(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def position_grid(self) -> int:
        """Side of the stored position table in patches."""
        return self.extra.get("position_grid", self.grid)

    @property
    def class_tokens(self) -> int:
        """Rows in front of the patches: 1, or 0 for a tower without a class token."""
        return int(TOWERS.get(self.model_type).class_token)

    @property
    def feature_layer(self) -> int:
        """Layers that run for the features, ``select_layer`` counted from the front; ConfigError beyond the tower."""
        depth, chosen = self.num_hidden_layers, self.select_layer
        layer = chosen if chosen >= 0 else depth + 1 + chosen
        if not 0 <= layer <= depth:
            raise ConfigError(
                f"mm_vision_select_layer {chosen}: the tower has {depth} layers; expected {-depth - 1} to {depth}"
            )
        return layer

    @property
    def tokens_per_tile(self) -> int:
        """Feature rows that one tile gives (P); ``cls_patch`` keeps the class token in front."""
        patches = self.grid * self.grid
        first = self.class_tokens if self.select_feature == "cls_patch" else 0
        return first + patches + more_rows(self.dense_connector, patches)

    @property
    def feature_width(self) -> int:
        """Width of the rows that the projector is given: ``hidden_size``, or that of several layers side by side."""
        return self.hidden_size * layers_side_by_side(self.dense_connector)


@dataclass(frozen=True)
class ImageConfig:
    """How an image becomes tiles of ``crop_size`` pixels, and how their features are laid out.

    ``aspect`` is ``square`` (short side resized, centre crop), ``pad`` (mean-coloured square) or ``anyres``.
    ``grid_pinpoints`` are (width, height) in pixels, as the original writes them.
    ``merge`` is ``flat``, ``spatial`` or ``spatial_unpad``. ``max_tiles`` is the N of LLaVA-NeXT's ``anyres_max_N``:
    the features of an image of more tiles are scaled down to about those of N. ``stretch``: ``square`` resizes both
    sides of an image to the tile instead (SigLIP). ``one_tile``: anyres makes one padded tile of an image, because it
    is one of several (``ImageProcessor.among``); no file says so.
    """

    crop_size: int
    resize_size: int
    aspect: str = "square"
    merge: str = "flat"
    grid_pinpoints: tuple[tuple[int, int], ...] = ()
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    max_tiles: int | None = None
    stretch: bool = False
    one_tile: bool = False


@dataclass(frozen=True)
class LlavaConfig:
    """A whole vision-language model. ``vision`` is None for a language model that has no tower yet."""

    text: TextConfig
    vision: VisionConfig | None
    image: ImageConfig | None
    projector_type: str = "mlp2x_gelu"
    has_image_newline: bool = False
    template: str = "vicuna_v1"
    use_im_start_end: bool = False
    use_im_patch_token: bool = False
    padding_side: str = "right"
    model_max_length: int = 2048
    vision_tower_name: str | None = None
    dtype: str = "float32"

    @property
    def tokens_per_tile(self) -> int:
        """Feature rows of one tile (P); 1 without a vision tower, where a plan asks for a number and has no tile."""
        return 1 if self.vision is None else self.vision.tokens_per_tile

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; ``LlavaConfig.from_dict`` gives the same object back."""
        data = asdict(self)
        if self.vision is not None and self.vision.dense_connector == NO_CONNECTOR:
            del data["vision"]["dense_connector"]  # versions before this key can read the file
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any], where: str = "config.json") -> "LlavaConfig":
        """Inverse of ``to_dict``. Unknown or missing keys raise ConfigError that names ``where`` and the key."""
        parts = dict(data)
        parts["text"] = _build(TextConfig, data.get("text"), f"{where}: /text")
        for key, kind in (("vision", VisionConfig), ("image", ImageConfig)):
            parts[key] = None if data.get(key) is None else _build(kind, data[key], f"{where}: /{key}")
        return _build(cls, parts, where)

    def with_changes(self, **changes: ConfigField) -> "LlavaConfig":
        """A copy with some fields replaced."""
        return replace(self, **changes)


_TUPLES = {"mean", "std"}


def _build(kind: type[T], data: JsonValue, where: str) -> T:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    known = {item.name for item in fields(kind)}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ConfigError(f'{where}: unknown key "{unknown[0]}" (known: {", ".join(sorted(known))})')
    values = {key: tuple(value) if key in _TUPLES else value for key, value in data.items()}
    if "grid_pinpoints" in values:
        values["grid_pinpoints"] = tuple(tuple(pair) for pair in values["grid_pinpoints"])
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}") from error
