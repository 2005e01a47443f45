# SPDX-License-Identifier: Apache-2.0
"""Which images a row may have, and the look at all of them before a run."""

import json
import os
import threading
from pathlib import Path

import pytest
from PIL import Image

from paddlemix.datasets import pictures as module
from paddlemix.datasets.pictures import PictureRules, check_pictures
from paddlemix.datasets.reading import picture_rules, read_rows
from paddlemix.imaging.load import OWN_LIMITS
from paddlemix.settings.run.loader import load_settings
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils.errors import DataError

TALK = {"conversations": [["<image>\nwhat?", "red"]]}


def picture(path: Path, size: tuple[int, int] = (9, 7), **more: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **more)
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """``root`` with images, links at its top and deeper, and folders outside of it."""
    root = tmp_path / "root"
    for place in ("root/in.png", "root/deep/in.png", "outside/a.png", "outside/more/a.png", "beyond/b.png"):
        picture(tmp_path / place)
    (root / "file.png").symlink_to(tmp_path / "outside" / "a.png")
    (root / "coco").symlink_to(tmp_path / "outside")
    (root / "deep" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "further").symlink_to(tmp_path / "beyond")
    (tmp_path / "moved").symlink_to(root)
    return tmp_path


@pytest.mark.parametrize("folder", ["root", "moved"])
@pytest.mark.parametrize(("image", "words"), [
    ("in.png", None),
    ("deep/in.png", None),
    ("x/../in.png", "no such image"),
    ("deep/../in.png", None),
    ("file.png", None),
    ("coco/a.png", None),
    ("coco/more/a.png", None),
    ("{tree}/root/in.png", None),
    ("{tree}/moved/in.png", None),
    ("{tree}/root/coco/a.png", None),
    ("../outside/a.png", "lies outside of the image folder"),
    ("{tree}/outside/a.png", "lies outside of the image folder"),
    ("/etc/hostname", "lies outside of the image folder"),
    ("coco/../../outside/a.png", "lies outside of the image folder"),
    ("coco/../beyond/b.png", "by a link"),
    ("coco/further/b.png", "by a link"),
    ("deep/link/a.png", "by a link"),
])  # fmt: skip
def test_rows_do_not_climb_out_of_the_image_folder_and_links_at_its_top_are_followed(rows, tree, folder, image, words):
    (sample,) = rows({**TALK, "image": image.format(tree=tree)}, image_folder=str(tree / folder))
    if words is None:
        assert PictureRules().load(sample, sample.images[0]).size == (9, 7)
        return
    with pytest.raises(DataError, match=words) as caught:
        PictureRules().load(sample, sample.images[0])
    if words != "no such image":
        assert "allow_outside_root to true" in str(caught.value)
        # Another folder helps an absolute path alone.
        assert ("set image_folder" in str(caught.value)) == (image.format(tree=tree).startswith("/"))
        if os.path.exists(sample.images[0]) and image.endswith(".png"):
            assert PictureRules(allow_outside_root=True).load(sample, sample.images[0]).size == (9, 7)


@pytest.mark.parametrize("image", ["{tree}/outside/a.png", "../outside/a.png", "link/a.png", "in.png"])
def test_without_an_image_folder_there_is_nothing_to_climb_out_of(rows, tree, monkeypatch, image):
    monkeypatch.chdir(tree / "root")
    (tree / "root" / "link").symlink_to(tree / "outside")
    (sample,) = rows({**TALK, "image": image.format(tree=tree)}, image_folder=None)
    assert PictureRules().load(sample, sample.images[0]).size == (9, 7)


def test_the_trees_of_multiview_rows_may_have_links_at_their_own_top(rows, tree):
    base = tree / "root" / "data" / "obj_demo"
    base.mkdir(parents=True)
    for view in (0, 1, 4, 5):
        picture(tree / "cap3d" / f"Cap3D_imgs_view{view}" / "chair.jpg")
        (base / f"Cap3D_imgs_view{view}").symlink_to(tree / "cap3d" / f"Cap3D_imgs_view{view}")
    row = {"id": "cap3d_1", "image": "chair", **TALK}
    (sample,) = rows(row, image_folder=str(tree / "root"), multiview=4)
    assert [PictureRules().load(sample, image).size for image in sample.images] == [(9, 7)] * 4


def samples_of(rows, folder: Path, count: int = 200) -> list:
    """One row an image; 7 is missing, 9 is a text, 11 is cut off behind its header, the last shows 7 again."""
    for index in range(count):
        picture(folder / f"{index}.png", (40, 30))
    (folder / "7.png").unlink()
    (folder / "9.png").write_text("<html>")
    noise = picture(folder / "11.jpg", (64, 64))
    noise.write_bytes(noise.read_bytes()[:-40])
    names = [f"{index}.jpg" if index == 11 else f"{index}.png" for index in range(count)]
    return rows(*[{**TALK, "image": name} for name in [*names, "7.png"]], image_folder=str(folder))


@pytest.mark.parametrize(("how", "bad"), [("none", []), ("header", [7, 9, 200]), ("decode", [7, 9, 11, 200])])
def test_pictures_are_looked_at_as_far_as_was_asked(rows, tmp_path, how, bad):
    samples = samples_of(rows, tmp_path / "images")
    seen = []
    faults = check_pictures(samples, PictureRules(), how, every=True, progress=lambda *pair: seen.append(pair))
    assert sorted(faults) == sorted(samples[index].where for index in bad)
    for index in bad:
        assert str(faults[samples[index].where]).startswith(samples[index].where)
    assert seen == [] if how == "none" else seen[-1] == (200, 200)


def test_every_file_is_opened_once_in_several_threads_and_shares_make_the_whole(rows, tmp_path, monkeypatch):
    samples = samples_of(rows, tmp_path / "images") * 2
    opened, threads, real = [], set(), module.image_size
    gate = threading.Barrier(2, timeout=30)

    def size(path, *args, **more):
        if len(threads) < 2:
            threads.add(threading.get_ident())
            gate.wait()
        opened.append(path)
        return real(path, *args, **more)

    monkeypatch.setattr(module, "image_size", size)
    check_pictures(samples, PictureRules(), every=True)
    good = {path for path in opened if not path.endswith(("/7.png", "/9.png"))}
    assert sorted(path for path in opened if path in good) == sorted(good)
    monkeypatch.undo()
    whole = check_pictures(samples, PictureRules(), every=True)
    parts = [check_pictures(samples, PictureRules(), every=True, share=(rank, 3)) for rank in range(3)]
    assert sorted(where for part in parts for where in part) == sorted(whole)


def test_the_look_ends_early_when_it_stops_the_run_anyway(rows, tmp_path):
    samples = rows(*[{**TALK, "image": f"{index}.png"} for index in range(5000)], image_folder=str(tmp_path))
    assert 100 <= len(check_pictures(samples, PictureRules())) < 3000
    assert len(check_pictures(samples, PictureRules(), every=True)) == 5000


def test_remote_pictures_are_not_fetched_for_the_look(rows, monkeypatch):
    monkeypatch.setattr("paddlemix.imaging.load.fetch", None)
    samples = rows({**TALK, "image": "https://example.org/a.png"})
    rules = PictureRules(allow_image_urls=True)
    assert check_pictures(samples, rules, "decode", every=True) == {}
    for odd in (
        "http://[::1/x.png",
        "http://a:b:c/x",
        "https://../x",
        "http://me@host/x",
        "http:///x",
        "http://h\\ost/x",
    ):
        (sample,) = rows({**TALK, "image": odd}, name="odd.json")
        (error,) = check_pictures([sample], rules).values()
        assert str(error).startswith(sample.where)
        with pytest.raises(DataError, match="odd.json: /0"):
            rules.load(sample, odd)


@pytest.fixture
def run(tmp_path: Path):
    def make(*rows: dict[str, object], **keys: object) -> TrainingSettings:
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        values = {"model_name_or_path": "m", "output_dir": str(tmp_path / "out"), "do_train": True, **keys}
        (tmp_path / "run.json").write_text(json.dumps({"data_path": str(tmp_path / "rows.json"), **values}))
        return load_settings([str(tmp_path / "run.json")])

    return make


@pytest.mark.parametrize(("name", "words"), [("/none.png", "no such image file"), ("empty.png", "the file is empty")])
def test_a_bad_picture_stops_a_run_before_anything_is_written_and_names_keys_that_help(run, tmp_path, name, words):
    good = str(picture(tmp_path / "good.png"))
    (tmp_path / "empty.png").touch()
    bad = str(tmp_path / name)
    rows = [{**TALK, "image": good}, {**TALK, "image": bad, "id": "b"}, {**TALK, "image": "/none2.png"}]
    with pytest.raises(DataError) as caught:
        read_rows(run(*rows))
    text = str(caught.value)
    assert text.startswith(f'{tmp_path / "rows.json"}: /1 (id "b"): {bad}: {words}')
    assert "1 more rows have images" in text
    for key, value in (("on_bad_sample", "skip"), ("check_images", "none")):
        assert f'"{key}": "{value}"' in text
        assert len(read_rows(run(*rows, **{key: value})).train.samples) == 3
    assert not (tmp_path / "out").exists()


def test_limits_of_pictures_are_settings_that_their_messages_name(run, tmp_path):
    kinds = {
        "max_image_pixels": ((40, 30), 1199, "1200", 1200),
        "max_image_side": ((40, 30), 39, "sides must be 1 to 39", 40),
        "max_image_aspect": ((90, 30), 2.9, "2.9 times", 3),
    }
    for key, (size, low, words, enough) in kinds.items():
        row = {**TALK, "image": str(picture(tmp_path / f"{key}.png", size))}
        with pytest.raises(DataError, match=rf"{words}.*or raise {key}|or raise {key}"):
            read_rows(run(row, **{key: low}))
        read_rows(run(row, **{key: enough}))
    row = {**TALK, "image": str(picture(tmp_path / "a.png", (400, 300)))}
    count = os.path.getsize(tmp_path / "a.png")
    for key, low, how in (("max_image_bytes", count - 1, "header"), ("max_image_memory", 1000, "decode")):
        with pytest.raises(DataError, match=f"or raise {key}"):
            read_rows(run(row, **{key: low, "check_images": how}))
    assert picture_rules(run(row)).limits.max_pixels == OWN_LIMITS.max_pixels


def test_pictures_are_turned_by_their_exif_data_only_when_asked(run, rows, encoder, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.jpg", "a.png", "a.webp", "a.tiff"):
        path = picture(tmp_path / name, (40, 30), exif=exif)
        (sample,) = rows({**TALK, "image": str(path)}, image_folder=None)
        always = name == "a.tiff"  # Pillow turns it itself
        for turned, size in ((False, (30, 40) if always else (40, 30)), (True, (30, 40))):
            rules = picture_rules(run({**TALK, "image": str(path)}, exif_rotation=turned))
            assert rules.load(sample, sample.images[0]).size == size
            assert rules.size(sample, sample.images[0]) == size[::-1]
