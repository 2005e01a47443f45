# SPDX-License-Identifier: Apache-2.0
"""The work that tools/bench.py counts, against the parameters of the model that it measures; the picture of growth."""

import numpy as np
import pytest

from tools import bench, bench_bits, bench_growth
from tools.bench_limits import shares

LIMITS = {"product": 1.0, "read": 4.0}
"""One FLOP and one value of four bytes a second: a share of one second is then a number of each."""


@pytest.fixture(scope="module")
def parameters():
    """Values of each parameter of the tiny shape."""
    from paddlemix.models.llava import build_empty

    model = build_empty(bench.model_config(bench.SHAPES["tiny"]))
    return {name: int(np.prod(one.shape)) for name, one in model.named_parameters() if one.ndim > 1}


def test_a_step_reads_every_weight_once_and_the_kept_places_of_each_row(parameters):
    spec = bench.SHAPES["tiny"]
    weights = sum(count for name, count in parameters.items() if name.startswith(("llama.layers", "lm_head")))
    kept = 2 * spec["layers"] * (spec["prompt"] + spec["tokens"] // 2) * spec["width"]

    assert shares("decode", 1.0, spec, LIMITS)["read"] == weights + kept
    assert shares("step of 4", 1.0, spec, LIMITS)["read"] == weights + 4 * kept
    assert shares("decode", 2.0, spec, LIMITS)["product"] == weights + kept


def test_the_tower_multiplies_all_blocks_but_the_last(parameters):
    spec = bench.SHAPES["tiny"]
    patches = (spec["image"] // spec["patch"]) ** 2
    block = sum(count for name, count in parameters.items() if ".transformer.layers.0." in name)
    ends = sum(count for name, count in parameters.items() if "conv1" in name or "mm_projector" in name)
    scores = 4 * (patches + 1) ** 2 * spec["vision_width"]
    blocks = (spec["vision_layers"] - 1) * (2 * (patches + 1) * block + scores)

    assert shares("vision", 1.0, spec, LIMITS)["product"] == blocks + 2 * patches * ends
    assert not shares("8 short together", 1.0, spec, LIMITS)


@pytest.mark.slow
def test_growth_is_drawn_and_told_against_the_first_size(tmp_path):
    pytest.importorskip("matplotlib")
    curves = {name: {"1": 0.5, "2": 1.0} for names in bench_growth.PICTURE.values() for name in names}

    bench_growth.draw_curves(curves, tmp_path / "growth.png", "made up")

    assert (tmp_path / "growth.png").stat().st_size > 10_000
    assert bench_growth.report(curves)[0].split() == [
        "tiles",
        "vision",
        "1:",
        "500.0",
        "(1.00)",
        "2:",
        "1000.0",
        "(2.00)",
    ]


@pytest.mark.parametrize("kind", ["decode", "bits", "all", "head", "load", "static", "train"])
def test_no_repetition_is_refused_before_anything_is_made(kind, capsys):
    for count in ("0", "-1", "two"):
        with pytest.raises(SystemExit) as ended:
            bench.main([kind, "--repeat", count])
        assert ended.value.code == 2
        assert f"--repeat: '{count}' is no whole number of at least 1" in capsys.readouterr().err


def test_aims_are_told_for_the_shape_that_they_speak_of():
    row = {"memory": 8e6, "decode": 0.1, "prefill": 0.1, "vision": 0.1, "cosine": 0.9}
    assert "8 bits   memory 8 MB, 1.000 x [<= 0.32]" in bench_bits.line_of(8, row, row, bench_bits.AIMS[8])
    assert "cosine 0.90000 [>= 0.999]" in bench_bits.line_of(8, row, row, bench_bits.AIMS[8])
    assert "[" not in bench_bits.line_of(8, row, row, {})
