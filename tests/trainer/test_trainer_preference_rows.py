"""From rows of every family to batches: one prompt, one set of images, and the log-probabilities of rows alone."""

import dataclasses
import json

import numpy as np
import paddle
import pytest

from paddlemix.datasets.build import build_datasets
from paddlemix.datasets.multiview import _is_folder
from paddlemix.datasets.preference import KL
from paddlemix.models.loss import next_labels
from paddlemix.models.token_log_probs import log_probs_through_head, plain_log_probs
from paddlemix.settings.model import ImageConfig
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.text.tokenizer import load_tokenizer
from paddlemix.trainer.preference import answers_of
from paddlemix.utils.constants import IGNORE_INDEX
from paddlemix.utils.errors import DataError
from tests.tiny import tiny_config, tiny_image, tiny_intern_config, tiny_model, tiny_tokenizer_folder

GRID = ((28, 56), (56, 28), (56, 56))
FAMILIES = {
    "llava-1.5": lambda: tiny_config(),
    "llava-1.6": lambda: tiny_config(
        image=ImageConfig(28, 28, aspect="anyres", merge="spatial_unpad", grid_pinpoints=GRID), has_image_newline=True
    ),
    "anyres_max": lambda: tiny_config(
        image=ImageConfig(28, 28, aspect="anyres", merge="spatial_unpad", grid_pinpoints=GRID, max_tiles=1),
        has_image_newline=True,
    ),
    "mv-llava": lambda: tiny_config(),
    "internvl": lambda: tiny_intern_config(),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Pictures, rows with two answers and rows with one; the second row has no image."""
    root = tmp_path_factory.mktemp("preference")
    for number, size in enumerate(((40, 30), (30, 60), (90, 30))):
        tiny_image(number, size).save(root / f"{number}.png")
    said = (("user", "what?"), ("assistant", "a circle"), ("user", "which colour?"))
    turns = [{"role": role, "content": text} for role, text in said]
    pairs = [
        {"image": "0.png", "question": "what is shown?", "chosen": "a red square", "rejected": "nothing"},
        {"question": "how many?", "chosen": "three", "rejected": "one or two things are there"},
        {"image": "1.png", "prompt": turns, "chosen": "green green", "rejected": "blue"},
        {"image": "2.png", "question": "left or right?", "chosen": "left", "rejected": "right of it"},
    ]  # fmt: skip
    single = [{**{name: row[name] for name in ("image", "question", "prompt") if name in row},
               "completion": row["chosen" if number % 2 else "rejected"], "label": bool(number % 2)}
              for number, row in enumerate(pairs)]  # fmt: skip
    (root / "pairs.json").write_text(json.dumps(pairs))
    (root / "single.json").write_text(json.dumps(single))
    return root


def data(home, family, loss="sigmoid", file=None, **changes):
    _is_folder.cache_clear()
    file = file or ("single.json" if loss == "kto" else "pairs.json")
    entry = {"data_files": str(home / file), "image_folder": str(home)}
    entry |= {"name": "mv_dataset"} if family == "mv-llava" else {}
    keys = dict(model_name_or_path="m", output_dir=str(home / "out"), dataset={"train": [entry]}, do_train=True,
                loss_type=loss, max_length=400)  # fmt: skip
    settings = TrainingSettings().with_changes(**{**keys, **changes})
    config = FAMILIES[family]()
    return config, build_datasets(settings, config, load_tokenizer(tiny_tokenizer_folder()))


def tensors(batch):
    return {name: paddle.to_tensor(value) for name, value in batch.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_both_answers_stand_behind_the_same_ids_and_layouts(home, family):
    _, found = data(home, family)
    for pair in (found.train[index] for index in range(len(found.train))):
        assert pair.chosen.ids[: pair.answer].tolist() == pair.rejected.ids[: pair.answer].tolist()
        assert pair.chosen.layouts == pair.rejected.layouts
        for part in (pair.chosen, pair.rejected):
            assert (part.labels[: pair.answer] == IGNORE_INDEX).all()
            assert (part.labels[pair.answer :] != IGNORE_INDEX).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_of_a_batch_have_the_log_probabilities_of_rows_alone(home, family):
    config, found = data(home, family)
    model = tiny_model(config=config)
    pairs = [found.train[index] for index in range(len(found.train))]
    batch = found.collator(pairs)
    tiles = sum(len(pair.chosen.pixels) for pair in pairs if pair.chosen.pixels is not None)
    assert len(batch["pixels"]) == tiles, "an image is encoded once for both answers"
    assert ("blend_index" in batch) == (family == "anyres_max")
    with paddle.no_grad():
        together = answers_of(model, tensors(batch))
        alone, lengths = [], []
        for part in ("chosen", "rejected"):
            for pair in pairs:
                row = getattr(pair, part)
                single = found.collator.collator([dataclasses.replace(row, pixels=pair.chosen.pixels)])
                labels = paddle.to_tensor(single.pop("labels"))
                logits = model(**tensors(single))
                targets = next_labels(labels).reshape([-1])
                learnt = (targets != IGNORE_INDEX).astype("float32")
                each = plain_log_probs(logits.reshape([-1, logits.shape[-1]]), paddle.clip(targets, min=0))
                alone.append(float((each * learnt).sum()))
                lengths.append(float(learnt.sum()))
    np.testing.assert_allclose(together.summed.numpy(), alone, rtol=0, atol=2e-4)
    assert together.lengths.numpy().tolist() == lengths


def test_a_mismatched_pair_is_a_prompt_with_its_images_and_the_answer_of_the_row_before(home):
    config, found = data(home, "llava-1.6", "kto")
    rows = [found.train[index] for index in range(len(found.train))]
    model = tiny_model(config=config)
    batch = found.collator(rows)
    mixed = [
        dataclasses.replace(
            row.chosen,
            ids=np.concatenate([row.chosen.ids[: row.answer], other.chosen.ids[other.answer :]]),
            labels=np.concatenate([row.chosen.labels[: row.answer], other.chosen.labels[other.answer :]]),
        )
        for row, other in zip(rows, [rows[-1], *rows[:-1]], strict=True)
    ]
    expected = found.collator([dataclasses.replace(row, chosen=part) for row, part in zip(rows, mixed, strict=True)])
    with paddle.no_grad():
        together = answers_of(model, tensors(batch), KL).summed.numpy()
        alone = answers_of(model, tensors(expected)).summed.numpy()
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    assert batch["desirable"].tolist() == [0.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("loss", ["sigmoid", "kto", "orpo"])
def test_a_batch_whose_rows_were_left_out_counts_nothing(home, loss):
    config, found = data(home, "llava-1.5", loss)
    batch = found.collator([None, None])
    model = tiny_model(config=config)
    found_answers = answers_of(model, tensors(batch))
    assert batch["weights"].tolist() == [0.0]
    assert not found_answers.summed.numpy().any()
    if loss == "kto":
        assert not answers_of(model, tensors(batch), KL).summed.numpy().any()


def test_orpo_learns_the_text_of_the_chosen_rows_and_rpo_their_answers(home):
    _, found = data(home, "llava-1.5", "orpo")
    batch = found.collator([found.train[0], found.train[1]])
    text = [pair.chosen.ids for pair in (found.train[0], found.train[1])]
    # Every id but the first and the one behind which an image's rows stand; the image itself is no id.
    assert int(batch["learnt"].sum()) == sum(len(ids) - 1 - int((ids < 0).sum()) for ids in text)
    _, found = data(home, "llava-1.5", "sigmoid", rpo_alpha=1.0)
    batch = found.collator([found.train[0], found.train[1]])
    assert int(batch["learnt"].sum()) == int(batch["lengths"][:2].sum())


def test_answers_that_max_length_makes_equal_or_cuts_off_are_told(home, tmp_path):
    rows = [{"question": "what?", "chosen": "a b c d e f g", "rejected": "a b c d e f h"}]
    (tmp_path / "long.json").write_text(json.dumps(rows))
    _, found = data(home, "llava-1.5", file=tmp_path / "long.json")
    length = found.train[0].length
    _, found = data(home, "llava-1.5", file=tmp_path / "long.json", max_length=length - 3)
    with pytest.raises(DataError, match=rf"/0: both answers are the same in the first {length - 3} positions; raise"):
        found.train[0]
    _, found = data(home, "llava-1.5", file=tmp_path / "long.json", max_length=20)
    with pytest.raises(DataError, match="nothing to learn in the first 20 of"):
        found.train[0]


def test_an_image_that_is_missing_is_told_before_the_run(home, tmp_path):
    (tmp_path / "rows.json").write_text(
        json.dumps([{"image": "none.png", "question": "q", "chosen": "a", "rejected": "b"}])
    )
    with pytest.raises(DataError, match=r"rows\.json: /0: .*none\.png"):
        data(home, "llava-1.5", file=tmp_path / "rows.json")


@pytest.mark.parametrize("transposed", [False, True])
def test_log_probabilities_by_portions_are_those_of_all_logits(transposed):
    paddle.seed(3)
    rows, targets, slopes = paddle.randn([7, 5]), paddle.randint(0, 11, [7]), paddle.randn([7])
    weight = paddle.randn([11, 5] if transposed else [5, 11])
    found = []
    for portion in (0, 1, 3, 7):
        x, w = (value.clone().detach() for value in (rows, weight))
        x.stop_gradient = w.stop_gradient = False
        if portion:
            each = log_probs_through_head(x, w, targets, transposed=transposed, portion=portion)
        else:
            each = plain_log_probs(paddle.matmul(x, w, transpose_y=transposed), targets)
        (each * slopes).sum().backward()
        found.append([each.numpy(), x.grad.numpy(), w.grad.numpy()])
    for other in found[1:]:
        for mine, expected in zip(other, found[0], strict=True):
            np.testing.assert_allclose(mine, expected, rtol=0, atol=2e-6)
