# SPDX-License-Identifier: Apache-2.0
"""No file within the limits takes more than 300 MB or much time, and what is refused is refused before it costs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix.imaging.load import OWN_LIMITS, image_size, load_image
from paddlemix.imaging.preprocess import expand_to_square, resize_on_square
from paddlemix.utils.errors import DataError
from tests.imaging import bombs

pytestmark = pytest.mark.timeout(900)  # seconds on an idle machine


@pytest.fixture(scope="module")
def costs() -> dict[str, dict]:
    """What each file of the list cost, measured in processes of their own."""
    done = subprocess.run([sys.executable, bombs.__file__], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", bombs.TAKEN)
def test_the_largest_that_may_be_opened_stays_within_300_mb(costs, name):
    assert costs[name]["told"] == ""
    assert costs[name]["MB"] <= 300
    assert costs[name]["CPU"] <= 30  # some take two seconds; the limit is wide for machines under load


@pytest.mark.parametrize("name", bombs.REFUSED)
def test_what_would_cost_more_is_refused_before_it_does(costs, name):
    assert costs[name]["told"].startswith("the given image bytes")
    assert costs[name]["told"].endswith(("replace the file", "baseline JPEG"))
    assert costs[name]["MB"] <= 30


def test_the_size_of_a_hostile_file_is_not_asked_of_pillow(monkeypatch):
    monkeypatch.setattr(Image, "open", None)  # nothing may reach it
    for name in ("JPEG of empty segments", "PNG of empty chunks", "GIF of extensions", "TIFF whose tags unfold"):
        with pytest.raises(DataError):
            image_size(bombs.REFUSED[name](), OWN_LIMITS)


def test_a_size_is_read_where_the_header_is_longer_than_usual(tmp_path: Path):
    long = bombs.segments(0xE2, *[bytes(60_000)] * 4)
    (tmp_path / "long.jpg").write_bytes(long)
    assert image_size(tmp_path / "long.jpg") == (64, 64)
    assert load_image(long).size == (64, 64)


@pytest.mark.parametrize("times", [1, 10, 40])
def test_honest_progressive_pictures_are_read(times):
    assert load_image(bombs.scans((400, 300), times)).size == (400, 300)


def test_exif_that_unfolds_is_refused_where_it_is_read():
    block = bombs.tags(3000, 60_000)
    data = bombs.png(8, 8, 2, more=bombs.chunk(b"eXIf", block + bytes(60_000)))
    assert load_image(data).size == (8, 8)
    with pytest.raises(DataError, match="tags that claim more bytes"):
        load_image(data, transpose_exif=True)
    text = f"\nexif\n{len(block)}\n{block.hex()}".encode()
    with pytest.raises(DataError, match="tags that claim more bytes"):
        load_image(
            bombs.png(8, 8, 2, more=bombs.chunk(b"tEXt", b"Raw profile type exif\0" + text)), transpose_exif=True
        )


@pytest.mark.parametrize("side", [5, 32, 336])
@pytest.mark.parametrize("size", [(7, 5), (640, 480), (480, 641), (2000, 31), (31, 2000), (336, 336), (1, 90), (90, 1)])
def test_a_strip_at_a_time_gives_the_bits_of_the_whole_canvas(size, side, monkeypatch):
    from paddlemix.imaging import preprocess

    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    picture, colour = Image.fromarray(pixels), (122, 116, 104)
    whole = expand_to_square(picture, colour).resize((side, side), resample=Image.Resampling.BICUBIC)
    for strip in (1, 10_000, 1 << 20):
        monkeypatch.setattr(preprocess, "_STRIP", strip)
        assert np.array_equal(np.asarray(resize_on_square(picture, colour, side)), np.asarray(whole))
