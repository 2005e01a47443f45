# SPDX-License-Identifier: Apache-2.0
"""A tiny tokenizer, an image folder and an encoder for the tests of the data sets."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from paddlemix.datasets.pictures import PictureRules
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.sample import BadSamples, Sample
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.text import templates
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer

TINY = Path(__file__).resolve().parents[1] / "tiny.py"
VISION = VisionConfig(32, 64, 2, 4, image_size=28, patch_size=14)
PAD = ImageConfig(28, 28, "pad")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    spec = importlib.util.spec_from_file_location("paddlemix_tests_tiny", TINY)
    tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny)
    return load_tokenizer(tiny.tiny_tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """a.png 40 x 30, b.png 30 x 50, c.png 28 x 28 pixels."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, (width, height) in {"a": (40, 30), "b": (30, 50), "c": (28, 28)}.items():
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def encoder(tokenizer: Tokenizer) -> Callable[..., SampleEncoder]:
    def make(image: ImageConfig = PAD, template: str = "v1", **options: Any) -> SampleEncoder:
        options = {"max_length": 512, **options}
        names = {field.name for field in fields(PictureRules)} & set(options)
        options["pictures"] = PictureRules(**{name: options.pop(name) for name in names})
        layout = templates.get(template, training=True)
        return SampleEncoder(tokenizer, ImageProcessor(image, VISION), layout, **options)

    return make


@pytest.fixture
def rows(tmp_path: Path, pictures: Path) -> Callable[..., list[Sample]]:
    """Writes rows into a data file and reads them."""

    def make(*found: Any, bad: BadSamples | None = None, name: str = "train.json", **entry: Any) -> list[Sample]:
        path = tmp_path / name
        if name.endswith(".jsonl"):
            path.write_text("\n".join(json.dumps(row) for row in found), encoding="utf-8")
        else:
            path.write_text(json.dumps(list(found)), encoding="utf-8")
        return read(DatasetEntry((str(path),), **{"image_folder": str(pictures), **entry}), bad)

    return make
