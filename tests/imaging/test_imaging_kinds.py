# SPDX-License-Identifier: Apache-2.0
"""Files that are no images for us are named for what they are; images turn where a flag asks for it."""

from pathlib import Path

import pytest
from PIL import Image

from paddlemix.annotate.objects import ObjectImages, read_objects
from paddlemix.checkpoint.folders import read_json
from paddlemix.checkpoint.formats.source import open_file
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.examples.llava import run_predict_multiround as chat
from paddlemix.examples.mv_llava import run_predict_multiview as multiview
from paddlemix.imaging.load import LIMITS, OWN_LIMITS, image_size, load_image
from paddlemix.settings.run.loader import load_settings
from paddlemix.text.chat_template import load as load_template
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import DataError, PaddleMixError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 12345\n"


def boxed(brand: bytes) -> bytes:
    return b"\0\0\0\x18ftyp" + brand + bytes(40)


@pytest.mark.parametrize(("data", "words"), [
    (boxed(b"heic"), "is HEIC.*magick a.heic"),
    (boxed(b"mif1"), "is HEIC"),
    (boxed(b"avif"), "is AVIF.*save it as PNG"),
    (boxed(b"isom"), "is a video; give single frames"),
    (b"\x1aE\xdf\xa3" + bytes(40), "is a video"),
    (b"%PDF-1.7\n", "is a PDF document; save it as PNG"),
    (b"%!PS-Adobe-3.0 EPSF", "is PostScript, which is a program"),
    (b"8BPS\0\1", "is a Photoshop file"),
    (b"\n<!DOCTYPE html><html>", "is a web page, perhaps what a failed download left"),
    (b"<svg xmlns='x'/>", "is SVG"),
    (b"\xff\x0a\0\0", "is JPEG XL"),
    (b"PK\x03\x04\0\0", "is a zip archive; unpack it"),
    (b"\x1f\x8b\x08", "is packed with gzip"),
    (POINTER, "is a git-lfs pointer, not the file itself; run git lfs pull"),
    (b"once upon a time", r"not an image, or of none of the accepted formats \(JPEG, "),
])  # fmt: skip
@pytest.mark.parametrize("limits", [LIMITS, OWN_LIMITS])
def test_a_file_that_is_no_picture_is_named_for_what_it_is(tmp_path: Path, data: bytes, words: str, limits):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (str(path), data):
        for look in (load_image, image_size):
            with pytest.raises(DataError, match=rf"(a\.png|given image bytes): {words}"):
                look(source, limits)


def test_tiff_is_read_where_the_files_are_the_users_own_and_named_elsewhere(tmp_path: Path):
    path = tmp_path / "a.tiff"
    Image.new("RGB", (4, 3), (1, 2, 3)).save(path)
    assert load_image(path, OWN_LIMITS).getpixel((0, 0)) == (1, 2, 3)
    with pytest.raises(DataError, match=r"a\.tiff: is TIFF, which is not read here; save it as PNG"):
        load_image(path, LIMITS)


def write(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(POINTER)
    return path


READERS = {
    "picture.png": load_image,
    "train.json": lambda path: read(DatasetEntry((str(path),))),
    "train.jsonl": lambda path: read(DatasetEntry((str(path),))),
    "settings.json": lambda path: load_settings([str(path)]),
    "chat_template.json": load_template,
    "config.json": read_json,
    "model.safetensors": open_file,
    "pytorch_model.bin": open_file,
    "model_state.pdparams": open_file,
    "tokenizer.model": lambda path: load_tokenizer(path.parent),
    "tokenizer.json": lambda path: load_tokenizer(path.parent),
    "objects.csv": lambda path: read_objects(path, "id"),
    "objects.json": lambda path: read_objects(path, "id"),
    "objects.jsonl": lambda path: read_objects(path, "id"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_git_lfs_pointer_is_named_whatever_the_kind_of_file(tmp_path: Path, name: str):
    with pytest.raises(PaddleMixError, match=rf"{name}: is a git-lfs pointer, not the file itself; run git lfs pull"):
        READERS[name](write(tmp_path / "folder" / name))


def test_commands_turn_pictures_by_their_exif_data_when_asked_and_read_tiff(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "Cap3D_imgs_view0" / "a.jpg"
    for view in (0, 1, 4, 5):
        folder = tmp_path / f"Cap3D_imgs_view{view}"
        folder.mkdir()
        Image.new("RGB", (40, 30)).save(folder / "a.jpg", exif=exif)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.tif")
    for flags, size in (([], (40, 30)), (["--exif-rotation"], (30, 40))):
        args = chat.parser().parse_args(flags)
        assert chat._open(str(path), args).size == size
        assert chat._open(str(tmp_path / "a.tif"), args).size == (40, 30)
        args = multiview.parser().parse_args(["--model-path", "m", "--image-file", str(path), *flags])
        assert {view.size for view in multiview.views_of(args)} == {size}
        assert {view.size for view in ObjectImages(tmp_path, exif_rotation=bool(flags)).views({"id": "a"})} == {size}
