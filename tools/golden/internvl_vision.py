# SPDX-License-Identifier: Apache-2.0
"""Golden family i, part one: InternViT and EVA-CLIP towers, their gradients, projectors, images and names."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from paddlemix.checkpoint import keymap
from paddlemix.imaging.load import load_image
from paddlemix.imaging.preprocess import preprocess, tiles_of, to_uint8
from paddlemix.models.llava import allocate
from paddlemix.models.projector import build_projector
from paddlemix.settings.model import ImageConfig
from paddlemix.settings.published.tower import pixels_for, read_tower
from paddlemix.settings.towers.base import IMAGENET_MEAN, IMAGENET_STD
from tools.golden.case import Case, guarded, near
from tools.golden.common import (
    FEATURES,
    GRADIENT,
    NOISE,
    RELATIVE,
    exact,
    load_encoder,
    name_cases,
    norm_of,
    read_json,
    tower_cases,
)

FOLDER = "internvl"
PIXELS = 1e-5
ROWS = 37
"""Every so many rows of a large image were written (MANIFEST)."""


def run(folder: Path) -> Iterator[Case]:
    """The towers and images of ``folder/internvl``."""
    root = folder / FOLDER
    if not root.is_dir():
        return
    for path in sorted(root.glob("*.npz")):
        if (root / path.stem / "config.json").is_file():
            yield from guarded(f"i/{path.stem}", _encoder_file, path, root / path.stem)
    yield from guarded("i/vision", _tower, root)
    if (root / "projectors.npz").is_file():
        yield from guarded("i/projectors", _projectors, root / "projectors.npz")
    yield from guarded("i/pictures", _pictures, folder)


@paddle.no_grad()
def _encoder_file(path: Path, folder: Path | None, encoder: Any = None) -> list[Case]:
    """The cases of one file of hidden states, with the tower in ``folder`` or ``encoder``."""
    encoder = load_encoder(folder)[1] if folder is not None else encoder
    return list(tower_cases(f"i/{path.stem}", encoder, dict(np.load(path))))


def tower_folder(root: Path) -> Path | None:
    """The InternViT folder that the chat model of ``root`` names."""
    for path in sorted(root.glob("*/config.json")):
        name = read_json(path).get("mm_vision_tower")
        if name and (root / name / "config.json").is_file():
            return root / name
    return None


def _tower(root: Path) -> Iterator[Case]:
    folder = tower_folder(root)
    if folder is None:
        return
    _, encoder = load_encoder(folder)
    for path in sorted(root.glob("vision_*.npz")):
        yield from guarded(f"i/{path.stem}", _vision_file, path, encoder)
    path = root / "resize_pos_embeddings.npz"
    if path.is_file():
        yield from guarded("i/resize_pos_embeddings", _resized, encoder, path)
    path = root / "state_dict_keys_vision.json"
    if path.is_file():
        yield from guarded("i/state_dict_keys_vision", _names, path, encoder)


def _vision_file(path: Path, encoder: Any) -> Iterator[Case] | list[Case]:
    data = dict(np.load(path))
    return _gradients(path, encoder, data) if "R" in data else _encoder_file(path, None, encoder)


def _names(path: Path, encoder: Any) -> Iterator[Case]:
    parameters = {f"{keymap.PREFIX_TOWER}{name}": item for name, item in encoder.named_parameters()}
    return name_cases("i/state_dict_keys_vision", read_json(path), "intern_vit", parameters)


def _resized(encoder: Any, path: Path) -> Iterator[Case]:
    """The original's study that resizes the table for good gives what is computed here at every call."""
    expected = np.load(path)["position_embedding"]
    side = int(np.sqrt(expected.shape[1] - 1))
    with paddle.no_grad():
        first = encoder.embeddings.position_embedding[:, :1]
        ours = paddle.concat([first, encoder.embeddings.positions((side, side))], axis=1).numpy()
    yield near("i/resize_pos_embeddings", ours, expected, FEATURES, RELATIVE)


def _gradients(path: Path, encoder: Any, data: dict[str, np.ndarray]) -> Iterator[Case]:
    label = f"i/{path.stem}"
    norms = read_json(path.with_name(f"{path.stem}_norms.json"))
    parameters = dict(encoder.named_parameters())
    for item in parameters.values():
        item.stop_gradient = False
    layer = sum(name.endswith(".ls1") and norm is not None for name, norm in norms.items())
    feature = encoder.hidden_state(paddle.to_tensor(data["pixel_values"]), layer)[:, 1:]
    loss = (feature * paddle.to_tensor(data["R"])).sum()
    yield near(f"{label}/loss", float(loss), data["loss"], 1e-3)  # a sum of thousands of terms of either sign
    loss.backward()
    total = max(norm for norm in norms.values() if norm is not None)
    worst, unexpected = (0.0, ""), []
    for name, norm in norms.items():
        grad = parameters[name].grad
        if norm is None:
            unexpected += [name] if grad is not None and norm_of(grad) > NOISE * total else []
            continue
        worst = max(worst, (abs(norm_of(grad) - norm) / norm, name))
    yield Case(f"{label}/norms", worst[0], GRADIENT, "ok" if worst[0] <= GRADIENT else "fail", f"worst {worst[1]}")
    yield exact(f"{label}/layers_above_get_none", unexpected, [])
    for key in sorted(key for key in data if key.endswith("_grad")):
        ours = parameters[f"embeddings.{key.removesuffix('_grad')}"].grad.numpy()
        yield near(f"{label}/{key}", ours, data[key], GRADIENT * float(np.abs(data[key]).max()))
    encoder.clear_gradients()


def _projectors(path: Path) -> Iterator[Case]:
    arrays = dict(np.load(path))
    given = paddle.to_tensor(arrays["input"])
    for kind in sorted({key.split("/")[0] for key in arrays} - {"input"}):
        wanted = arrays[f"{kind}/output"]
        layer = build_projector(kind, given.shape[-1], wanted.shape[-1])
        weights = {
            key.split("/weight/")[1]: value for key, value in arrays.items() if key.startswith(f"{kind}/weight/")
        }
        parameters = dict(layer.named_parameters())
        yield exact(f"i/projectors/{kind}/names", sorted(parameters), sorted(weights))
        for name in set(parameters) & set(weights):
            allocate(parameters[name], paddle.to_tensor(np.ascontiguousarray(weights[name].T)))
        with paddle.no_grad():
            yield near(f"i/projectors/{kind}", layer(given).numpy(), wanted, FEATURES, RELATIVE)


def image_config(side: int, aspect: str) -> ImageConfig:
    """How InternVL-Chat makes a tile of ``side`` pixels."""
    return ImageConfig(side, side, aspect, mean=IMAGENET_MEAN, std=IMAGENET_STD)


def _pictures(folder: Path) -> Iterator[Case]:
    root = folder / FOLDER
    sides = read_json(root / "image_processor_config.json") if (root / "image_processor_config.json").is_file() else {}
    tower = tower_folder(root)
    for side, facts in sides.items():
        if tower is None:
            break
        pixels = pixels_for(replace(read_tower(tower), image_size=int(side)), [tower])
        ours = [pixels.crop_size, pixels.resize_size, list(pixels.mean), list(pixels.std), 3]
        size, crop = facts["size"]["shortest_edge"], facts["crop_size"]["height"]
        theirs = [crop, size, facts["image_mean"], facts["image_std"], facts["resample"]]
        yield exact(f"i/image_processor/{side}", ours, theirs)
    path = root / "preprocess_tiny.npz"
    if path.is_file():
        for key, wanted in sorted(np.load(path).items()):
            yield from guarded(f"i/preprocess_tiny/{key}", _tiny, folder, key, wanted)
    for path in sorted(root.glob("preprocess_*_*.npz")):
        yield from guarded(f"i/{path.stem}", _large, folder, path)


def _tiny(folder: Path, key: str, wanted: np.ndarray) -> Case:
    name, _, mode = key.rpartition("_")
    picture = load_image(folder / "images" / f"{name}.png")
    return near(
        f"i/preprocess_tiny/{key}", preprocess(picture, image_config(wanted.shape[-1], mode))[0], wanted, PIXELS
    )


def _large(folder: Path, path: Path) -> Iterator[Case]:
    _, side, name = path.stem.split("_", 2)
    picture = load_image(folder / "images" / f"{name}.png")
    data = dict(np.load(path))
    for key in sorted(data):
        mode, _, kind = key.partition("_")
        config = image_config(int(side), mode)
        if kind == "uint8":
            ours = to_uint8(tiles_of(picture, config)[0], config).transpose(2, 0, 1)
            yield near(f"i/{path.stem}/{key}", ours, data[key], 0.0)
        else:
            ours = preprocess(picture, config)[0][:, ::ROWS]
            yield near(f"i/{path.stem}/{key}", ours, data[key], PIXELS)
