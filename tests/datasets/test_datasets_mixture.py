# SPDX-License-Identifier: Apache-2.0
"""Mixtures: how much of each data set an epoch reads, and files of other projects that say so."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paddlemix.datasets.mixture import draw, quotas
from paddlemix.datasets.reading import read_rows
from paddlemix.datasets.selection import Portion, Selection
from paddlemix.settings.run.loader import load_settings
from paddlemix.utils.errors import ConfigError

sizes = st.lists(st.integers(0, 40), min_size=1, max_size=4)


@given(sizes, st.lists(st.floats(0.1, 3.5), min_size=4, max_size=4), st.integers(0, 5))
def test_over_the_epochs_no_row_comes_twice_more_than_another_of_its_entry(sizes, repeats, seed):
    counts = quotas(sizes, [Portion(repeat) for repeat in repeats[: len(sizes)]])
    drawn = np.concatenate([draw(sizes, counts, seed, epoch) for epoch in range(4)])
    begin = 0
    for size, count in zip(sizes, counts, strict=True):
        seen = np.bincount(drawn[(drawn >= begin) & (drawn < begin + size)] - begin, minlength=size)
        assert seen.sum() == 4 * count
        assert not size or seen.max() - seen.min() <= 1
        begin += size


def test_weights_share_the_rows_of_an_epoch_out():
    assert quotas([100, 300], [Portion(weight=1), Portion(weight=1)]) == [200, 200]
    assert quotas([100, 0, 300], [Portion(weight=3), Portion(weight=5), Portion(weight=1)]) == [300, 0, 100]
    assert quotas([10, 1000], [Portion(2), Portion(0.0001)]) == [20, 1]


def test_an_epoch_draws_the_same_rows_again_and_another_epoch_others():
    assert draw([50, 9], [20, 9], 1, 3).tolist() == draw([50, 9], [20, 9], 1, 3).tolist()
    assert draw([50, 9], [20, 9], 1, 3).tolist() != draw([50, 9], [20, 9], 1, 4).tolist()
    assert draw([50, 9], [20, 9], 1, 3).tolist() != draw([50, 9], [20, 9], 2, 3).tolist()


@pytest.mark.parametrize(
    ("strategy", "chosen"),
    [("first:3", [0, 1, 2]), ("last:2", [8, 9]), ("end:25%", [7, 8, 9]), ("first:99", list(range(10))), ("end:0", [])],
)
def test_a_strategy_chooses_rows_as_llava_next_does(strategy, chosen):
    assert Selection(strategy).of(10).tolist() == chosen


def test_random_rows_keep_the_order_of_the_file_and_depend_on_the_seed():
    one, other = (Selection("random:30%", seed=seed).of(1000) for seed in (1, 2))
    assert len(one) == len(other) == 300
    assert (np.diff(one) > 0).all()
    assert one.tolist() != other.tolist()


@given(st.integers(1, 60), st.one_of(st.integers(1, 9), st.floats(0.01, 0.9)), st.integers(1, 80))
def test_rows_for_evaluation_are_no_rows_of_training(rows, split, most):
    both = [Selection("all", most, split, side).of(rows) for side in ("train", "eval")]
    assert sorted(np.concatenate(both).tolist()) == list(range(min(rows, most)))
    assert len(both[1]) >= 1


def test_all_rows_need_no_list():
    assert Selection().of(10) is None


# In a run


@pytest.fixture
def files(tmp_path: Path, monkeypatch) -> Path:
    """a.json with 8 rows, b.jsonl with 4, whose questions say which row it is."""
    monkeypatch.chdir(tmp_path)
    rows = {name: [{"conversations": [[f"{name}{i}", "yes"]]} for i in range(n)] for name, n in (("a", 8), ("b", 4))}
    (tmp_path / "a.json").write_text(json.dumps(rows["a"], indent=1))
    (tmp_path / "b.jsonl").write_text("\n".join(map(json.dumps, rows["b"])))
    return tmp_path


def settings(**keys):
    Path("run.json").write_text(json.dumps({"model_name_or_path": "m", "output_dir": "out", "do_train": True, **keys}))
    return load_settings(["run.json"])


def questions(split) -> list[str]:
    return [sample.messages[0].text for sample in split.samples]


def test_entries_say_how_much_of_them_is_read(files):
    train = [{"name": "first", "data_files": "a.json", "sampling_strategy": "end:50%", "max_samples": 3},
             {"data_files": ["b.jsonl", "a.json"], "eval_split": 2}]  # fmt: skip
    found = read_rows(settings(dataset={"train": train}, do_eval=True))
    assert questions(found.train)[:3] == ["a4", "a5", "a6"]
    second = questions(found.train)[3:]
    assert sorted(second + questions(found.eval)) == [f"a{i}" for i in range(8)] + [f"b{i}" for i in range(4)]
    assert len(questions(found.eval)) == 2
    assert found.train.samples.sizes.tolist() == [3, 10]


def test_a_yaml_of_llava_next_is_a_mixture(files):
    (files / "mix.yaml").write_text(
        "datasets:\n  - json_path: a.json\n    sampling_strategy: first:2\n  - json_path: b.jsonl\n"
    )
    assert questions(read_rows(settings(data_path="mix.yaml")).train) == ["a0", "a1", "b0", "b1", "b2", "b3"]


def test_a_meta_file_of_internvl_is_a_mixture(files):
    meta = {"big": {"root": "", "annotation": "a.json", "data_augment": False, "repeat_time": 2, "length": 8},
            "small": {"root": "pictures", "annotation": "b.jsonl", "repeat_time": 0.5}}  # fmt: skip
    (files / "meta.json").write_text(json.dumps(meta))
    (files / "pictures").mkdir()
    one, other = settings(data_path="meta.json").data.dataset["train"]
    assert one == {"name": "big", "data_files": "a.json", "repeat": 2}
    assert other == {"name": "small", "data_files": "b.jsonl", "repeat": 0.5, "image_folder": "pictures"}


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("m.yaml", "datasets: []", 'expected LLaVA-NeXT\'s form, "datasets:"'),
        ("m.yaml", "a: [", "cannot be read as YAML"),
        ("m.yaml", "datasets: [{json_path: a.json, sampling_strategy: some}]", '"some".*expected "all", or first'),
        ("m.yaml", "datasets: [{json_pth: a.json}]", 'unknown key "json_pth".*did you mean "json_path"'),
        ("m.json", '{"x": {"annotation": "a.json", "data_augment": true}}', '"/x": data_augment is true.*set it to'),
        ("m.json", '{"x": {"annotation": "a.json", "repeat_time": -1}}', "-1.*expected a number above 0"),
        ("m.json", '{"x": {"annotation": 3}}', '"annotation" is a whole number'),
    ],
)
def test_what_a_mixture_file_cannot_say_is_an_error_that_names_it(files, name, content, text):
    (files / name).write_text(content)
    with pytest.raises(ConfigError, match=f"{name}.*{text}"):
        settings(data_path=name)


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"weight": 0}, '"/dataset/train/0/weight" is 0 .*expected a number above 0'),
        ({"weight": True}, "expected a number above 0"),
        ({"weight": 1, "repeat": 2}, "has both weight and repeat"),
        ({"weight": 1}, '"/dataset/train/1" has no weight; give every entry one'),
        ({"max_samples": 2.5}, "expected a whole number from 1"),
        ({"eval_split": 1.5}, "expected a share between 0 and 1, or a number of rows"),
        ({"sampling_strategy": "first:-3"}, 'expected "all", or first'),
        ({"sampling_strategy": "first:0"}, "a number from 1"),
        ({"sampling_strategy": "random:101%"}, "a percentage to 100"),
        ({"name": "mv_datset"}, 'data set "mv_datset" is not known.*mv_dataset'),
    ],
)
def test_a_wrong_amount_names_entry_and_key(files, entry, text):
    with pytest.raises(ConfigError, match=text):
        read_rows(settings(dataset={"train": [{"data_files": "a.json", **entry}, {"data_files": "b.jsonl"}]}))


def test_rows_of_evaluation_are_read_once(files):
    with pytest.raises(ConfigError, match='"/dataset/eval/0/repeat" is a key of training data'):
        settings(dataset={"train": [{"data_files": "a.json"}], "eval": [{"data_files": "a.json", "repeat": 2}]})
