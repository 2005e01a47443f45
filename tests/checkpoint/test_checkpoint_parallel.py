# SPDX-License-Identifier: Apache-2.0
"""Tensor parallel: each device reads its slices of any form, and together they write what one device would."""

from pathlib import Path

import numpy as np
import pytest

from paddlemix.checkpoint.load import load_model
from paddlemix.checkpoint.lora.adapter import save_adapter
from paddlemix.checkpoint.save import save_model
from paddlemix.ops.linear import add_lora, lora_layers
from paddlemix.ops.parallel import ALONE, TensorParallel, cut, part_of, whole_shape
from tests.checkpoint import checkpoint_kit as kit
from tests.tiny import tiny_config, tiny_intern_config, tiny_model

DEVICES = [TensorParallel(rank, 2) for rank in range(2)]


def require_slices(whole, parts) -> None:
    """Every parameter of each device is its slice of the whole one; together they are all of it."""
    wanted = {name: value.numpy() for name, value in whole.named_parameters()}
    held = dict.fromkeys(wanted, 0)
    for part in parts:
        for name, value in part.named_parameters():
            assert np.array_equal(value.numpy(), cut(value, wanted[name])), name
            held[name] += value.size if part_of(value) is not None else value.size / len(parts)
    assert held == {name: value.size for name, value in wanted.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_published_weights_are_read_as_slices(tmp_path: Path, dtype: str) -> None:
    folder = kit.hub(tmp_path, tiny_model(seed=3), dtype=dtype)["llava"]
    require_slices(load_model(folder).model, [load_model(folder, parallel=device).model for device in DEVICES])


@pytest.mark.parametrize("config", [tiny_config, tiny_intern_config])
def test_our_own_folders_are_read_as_slices(tmp_path: Path, config) -> None:
    model = tiny_model(config=config())
    save_model(tmp_path / "own", model, model.config, None)
    loaded = [load_model(tmp_path / "own", parallel=device).model for device in (ALONE, *DEVICES)]
    require_slices(loaded[0], loaded[1:])


@pytest.mark.parametrize("lora", ["merge", "keep"])
def test_an_adapter_is_read_as_slices_and_merged_into_slices(tmp_path: Path, lora: str) -> None:
    base = tiny_model(seed=4)
    save_model(tmp_path / "base", base, base.config, None)
    add_lora(base, [r"llama.layers.*(q_proj|o_proj|down_proj)"], r=2, alpha=4)
    rng = np.random.default_rng(0)
    for _, layer in lora_layers(base):
        layer.lora_B.set_value(rng.standard_normal(layer.lora_B.shape).astype(np.float32))
    save_adapter(tmp_path / "adapter", base, base.config, None, base=tmp_path / "base")
    loaded = [load_model(tmp_path / "adapter", lora=lora, parallel=device).model for device in (ALONE, *DEVICES)]
    require_slices(loaded[0], loaded[1:])


def test_slices_are_written_as_one_model(tmp_path: Path) -> None:
    """``read`` stands for the exchange between devices, which tests/models runs."""
    whole = tiny_model(seed=5)
    save_model(tmp_path / "whole", whole, whole.config, None, max_shard_bytes=60_000)
    parts = [load_model(tmp_path / "whole", parallel=device).model for device in DEVICES]
    names = {id(value): name for name, value in parts[0].named_parameters()}

    def read(parameter) -> np.ndarray:
        both = [dict(part.named_parameters())[names[id(parameter)]] for part in parts]
        if part_of(parameter) is None:
            return parameter.numpy()
        made = np.full(whole_shape(parameter), np.nan, np.float32)
        for value in both:
            axis = part_of(value).axis
            ((start, stop),) = part_of(value).share.ranges
            made[(slice(None),) * axis + (slice(start, stop),)] = value.numpy()
        return made

    save_model(tmp_path / "joined", parts[0], whole.config, None, max_shard_bytes=60_000, read=read)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert len(files) > 4
    for name in files:
        assert (tmp_path / "joined" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
