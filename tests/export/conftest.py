# SPDX-License-Identifier: Apache-2.0
"""One tiny model with tiles and newlines, exported once."""

from dataclasses import replace

import pytest

from paddlemix.checkpoint.save import save_model
from paddlemix.export.opening import open_static
from paddlemix.export.write import export_model
from paddlemix.generation.predictor import Predictor
from paddlemix.text.tokenizer import load_tokenizer
from tests.export.static_kit import Twins
from tests.tiny import tiny_config, tiny_model, tiny_tokenizer_folder


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    """Left as it is by every test."""
    home = tmp_path_factory.mktemp("static")
    config = tiny_config()
    grid = {"aspect": "anyres", "merge": "spatial_unpad", "grid_pinpoints": ((28, 56), (56, 28), (56, 56))}
    config = config.with_changes(image=replace(config.image, **grid), has_image_newline=True)
    tokenizer = load_tokenizer(tiny_tokenizer_folder(home / "tokenizer"))
    folder = save_model(home / "model", tiny_model(config=config), config, tokenizer)
    export_model(folder, home / "out", device="cpu")
    static = open_static(home / "out", home / "out", device="cpu")
    return Twins(folder, home / "out", Predictor.load(folder, device="cpu"), static)
