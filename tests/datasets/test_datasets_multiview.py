# SPDX-License-Identifier: Apache-2.0
"""MV-LLaVA's rows: which files they mean, and batches of objects, lone images and text."""

import json

import numpy as np
import pytest
from PIL import Image

from paddlemix.datasets.build import build_datasets
from paddlemix.datasets.collate import Collator
from paddlemix.datasets.dataset import ChatDataset
from paddlemix.datasets.multiview import ENDINGS, _is_folder, views_of
from paddlemix.datasets.preprocess import SampleEncoder
from paddlemix.datasets.reading import entries_of
from paddlemix.datasets.sample import BadSamples
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.templates import get
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.utils.errors import DataError
from tests.tiny import tiny_config, tiny_image, tiny_tokenizer_folder

ASK = "<image><image><image><image>\nWhat is it?"


def row(name, image=None, ask=ASK, answer="red"):
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]
    return {"id": name, "conversations": turns} | ({} if image is None else {"image": image})


@pytest.fixture
def root(tmp_path):
    """A folder of images: one object, one sheet, one lone image."""
    _is_folder.cache_clear()
    for view in (0, 1, 4, 5, 6):
        folder = tmp_path / f"Cap3D_imgs_view{view}"
        folder.mkdir()
        tiny_image(view, (40, 40)).save(folder / "chair.jpg", format="PNG")
    tiny_image(9, (640, 640)).save(tmp_path / "sheet.png")
    tiny_image(10, (50, 30)).save(tmp_path / "photo.png")
    return tmp_path


def samples(root, rows, repeat=4, bad=None):
    path = root / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return read(DatasetEntry((str(path),), str(root), multiview=repeat), bad)


def encoder(**changes):
    config = tiny_config()
    processor = ImageProcessor(config.image, config.vision)
    return SampleEncoder(load_tokenizer(tiny_tokenizer_folder()), processor, get("v1"), max_length=512, **changes)


def encode(root, name, image=None, **changes):
    return encoder()(samples(root, [row(name, image, **changes)])[0])


def test_an_object_is_its_four_files_in_cap3ds_order(root):
    found = encode(root, "cap3d_1", "chair")
    paths = [root / f"Cap3D_imgs_view{view}" / "chair.jpg" for view in (0, 1, 4, 5)]
    processor = encoder().processor
    expected = np.concatenate([processor(Image.open(path).convert("RGB")).pixels for path in paths])
    assert np.array_equal(found.pixels, expected)
    assert found.length == len(found.ids) - 1 + 4 * 4


def test_a_sheet_is_cut_in_training_order(root):
    found = encode(root, "zeropp_1", "sheet.png")
    sheet = Image.open(root / "sheet.png").convert("RGB")
    processor = encoder().processor
    corners = [(0, 0), (0, 320), (320, 320), (320, 0)]
    expected = [processor(sheet.crop((x, y, x + 320, y + 320))).pixels for x, y in corners]
    assert np.array_equal(found.pixels, np.concatenate(expected))


def test_a_lone_picture_stands_four_times_and_is_encoded_once(root):
    found = encode(root, "000123", "photo.png", ask="<image>\nWhat?")
    assert found.pixels.shape[0] == 1
    assert found.layouts[0].order.tolist() == [0, 1, 2, 3] * 4


def test_listed_pictures_are_views_in_their_order(root):
    images = [f"Cap3D_imgs_view{view}/chair.jpg" for view in (6, 0, 1)]
    found = encode(root, "mine", images, ask="<image>\nWhat?")
    assert found.pixels.shape[0] == 3
    assert found.layouts[0].order.tolist() == list(range(12))


def test_all_places_of_a_turn_become_one_place(root):
    four, one = encode(root, "cap3d_1", "chair"), encode(root, "cap3d_1", "chair", ask="<image>\nWhat is it?")
    assert four.ids.tolist() == one.ids.tolist()


def test_ordinary_data_sets_know_nothing_of_views(root):
    (root / "rows.json").write_text(json.dumps([row("cap3d_1", "photo.png", "<image>\nWhat?")]), encoding="utf-8")
    (sample,) = read(DatasetEntry((str(root / "rows.json"),), str(root)))
    assert sample.views is None
    assert sample.images == (str(root / "photo.png"),)


def test_the_originals_tree_of_folders_is_found(tmp_path):
    _is_folder.cache_clear()
    (tmp_path / "data/obj_demo/Cap3D_imgs_view0").mkdir(parents=True)
    (tmp_path / "data/sharegpt4v/data").mkdir(parents=True)
    base = str(tmp_path)
    assert views_of("cap3d_1", ["a"], base, 4)[0][2] == f"{base}/data/obj_demo/Cap3D_imgs_view4/a.jpg"
    assert views_of("1", ["coco/a.jpg"], base, 4)[0] == (f"{base}/data/sharegpt4v/data/coco/a.jpg",)
    assert views_of("1", ["gqa/a.jpg"], base, 4)[0] == (f"{base}/data/llava/data/gqa/a.jpg",)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_pictures_of_an_object_may_have_any_ending_and_kind(tmp_path, ending, kind):
    for view in (0, 1, 4, 5):
        folder = tmp_path / f"Cap3D_imgs_view{view}"
        folder.mkdir()
        tiny_image(view, (40, 40)).save(folder / f"stool.v2{ending}", format=kind)
    assert encode(tmp_path, "cap3d_1", "stool.v2").pixels.shape[0] == 4


def test_lengths_equal_those_of_the_encoded_rows(root):
    rows = [
        row("cap3d_1", "chair"),
        row("sv3d_1", "sheet.png"),
        row("1", "photo.png", "<image>\nWhat?"),
        row("t", ask="Why?"),
    ]
    data = ChatDataset(samples(root, rows), encoder())
    assert data.lengths.tolist() == [data[index].length for index in range(4)]
    assert (data.modality_lengths > 0).tolist() == [True, True, True, False]


def test_a_mixed_batch_equals_each_row_alone(root):
    import paddle

    from tests.tiny import tiny_model

    rows = [
        row("cap3d_1", "chair"),
        row("t", ask="Why?"),
        row("1", "photo.png", "<image>\nWhat?"),
        row("sv3d_1", "sheet.png"),
    ]
    data = ChatDataset(samples(root, rows), encoder())
    model, collator = tiny_model(), Collator(tokens_per_tile=4, tile_side=28)

    def logits(items):
        batch = {key: paddle.to_tensor(value) for key, value in collator(items).items() if key != "labels"}
        with paddle.no_grad():
            return model(**batch).numpy()

    items = [data[index] for index in range(4)]
    mixed = logits(items)
    for index, item in enumerate(items):
        np.testing.assert_allclose(mixed[index, : item.length], logits([item])[0], atol=2e-4)


def test_an_object_at_one_place_gives_the_logits_of_four_places(root):
    import paddle

    from paddlemix.splice.plan import PlanRow, build_plan
    from tests.tiny import tiny_model

    found = encode(root, "cap3d_1", "chair")
    at = found.ids.tolist().index(-200)
    apart = [*found.ids[:at], *[-200] * 4, *found.ids[at + 1 :]]
    one = encoder().processor.layout((40, 40))
    model = tiny_model()

    def logits(ids, layouts):
        plan = build_plan([PlanRow(ids, layouts)], tokens_per_tile=4)
        arrays = (plan.token_ids, plan.source, plan.positions)
        with paddle.no_grad():
            return model(*map(paddle.to_tensor, arrays), pixels=paddle.to_tensor(found.pixels)).numpy()

    assert np.array_equal(logits(found.ids, found.layouts), logits(apart, [one] * 4))


def test_a_sheet_that_is_not_square_is_an_error_with_row_and_file(root):
    tiny_image(1, (640, 320)).save(root / "sheet.png")
    with pytest.raises(DataError, match=r'rows.json: /0 \(id "sv3d_1"\): .*sheet.png: .* this one has 640 x 320'):
        encode(root, "sv3d_1", "sheet.png")


def test_a_missing_view_is_an_error_with_its_file(root):
    with pytest.raises(DataError, match=r"Cap3D_imgs_view0/table.jpg: no such image file"):
        encode(root, "cap3d_1", "table")


def test_a_named_object_with_two_pictures_is_an_error(root):
    with pytest.raises(DataError, match=r'/0/image: "cap3d_" rows name one object; this one lists 2 images'):
        samples(root, [row("cap3d_1", ["chair", "table"])])
    bad = BadSamples("skip")
    assert len(samples(root, [row("cap3d_1", ["a", "b"]), row("cap3d_2", "chair")], bad=bad)) == 1
    assert bad.unread == 1


def test_an_object_mentioned_in_two_turns_is_an_error(root):
    twice = row("cap3d_1", "chair")
    twice["conversations"] += twice["conversations"]
    with pytest.raises(DataError, match='2 "<image>" in the text but the 4 views of one object'):
        encoder()(samples(root, [twice])[0])


def test_views_outside_of_the_image_folder_are_refused(root):
    with pytest.raises(DataError, match="outside of the image folder"):
        encode(root, "cap3d_1", "../../chair")


def test_settings_name_the_data_set_and_the_repetition(root, tmp_path):
    (root / "rows.json").write_text(json.dumps([row("1", "photo.png", "<image>\nWhat?")]), encoding="utf-8")
    entry = {"name": "mv_dataset", "data_files": str(root / "rows.json"), "image_folder": str(root)}
    settings = TrainingSettings().with_changes(
        dataset={"train": [entry]}, do_train=True, single_view_repeat=2, output_dir=str(tmp_path / "out"), template="v1"
    )
    assert entries_of([entry], settings)[0].multiview == 2
    data = build_datasets(settings, tiny_config(), load_tokenizer(tiny_tokenizer_folder())).train
    assert len(data[0].layouts[0].order) == 2 * 4
