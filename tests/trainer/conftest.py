# SPDX-License-Identifier: Apache-2.0
"""What the tests of whole runs share."""

import pytest

from tests.tiny import tiny_model, tiny_tokenizer_folder, write_rows


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """A folder with a tiny model, images and rows; the last row has no image."""
    from paddlemix.checkpoint.save import save_model
    from paddlemix.text.tokenizer import load_tokenizer

    root = tmp_path_factory.mktemp("place")
    model = tiny_model()
    save_model(root / "model", model, model.config, load_tokenizer(tiny_tokenizer_folder()))
    write_rows(root)
    return root
