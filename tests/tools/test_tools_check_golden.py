# SPDX-License-Identifier: Apache-2.0
"""tools/check_golden.py: what breaks or is missing fails its own case, and hides no other."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paddlemix.utils.constants import IGNORE_INDEX
from tests.conftest import golden_root
from tools.golden import generation, named, preprocess, prompts
from tools.golden.case import Case, guarded, unused_text

pytestmark = pytest.mark.golden


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the reference data, to be damaged: texts, images and the folders of tokenizers."""
    source = golden_root() / "llava"
    for name in ("b_prompts", "a_preprocess", "images", "e_generate", "hub"):
        if (source / name).is_dir():
            shutil.copytree(source / name, tmp_path / name, symlinks=True)
    for name in ("MANIFEST.md", "LEFT_OUT.txt"):
        if (source / name).is_file():
            shutil.copy(source / name, tmp_path)
    _make_smaller(tmp_path)
    return tmp_path


def _make_smaller(folder: Path) -> None:
    """A few cases of each file, among them the first row that the original loses."""

    def rows(data: dict) -> None:
        lost = [row for row in data["cases"] if row["stdout"].strip() and row["n_target"] == 0]
        data["cases"] = [*data["cases"][:4], lost[0]]

    def texts(data: dict) -> None:
        for block in data["tokenizers"].values():
            del block["rows"][3:]
        data["decode_random"] = data["decode_random"][:1]

    edit(folder / "b_prompts" / "preprocess_train.json", rows)
    edit(folder / "b_prompts" / "tokenizer.json", texts)
    for name in ("tokenizer_image_token", "keywords_stopping", "conv_prompts"):
        edit(folder / "b_prompts" / f"{name}.json", lambda data: data["cases"].__delitem__(slice(3, None)))
    for path in [*(folder / "b_prompts").glob("dataset_batch_*"), *(folder / "a_preprocess").glob("*_table*.json")]:
        path.unlink()
    (folder / "a_preprocess" / "intermediates_uint8.npz").unlink(missing_ok=True)


def edit(path: Path, change) -> None:
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def statuses(run) -> dict[str, str]:
    return {case.case: case.status for case in run}


def stable(found: dict[str, str]) -> set[str]:
    return {name for name, status in found.items() if status != "fail"}


def test_a_crash_is_one_failure_behind_what_was_compared_before():
    def breaks():
        yield Case("x/1", 0.0, 0.0, "ok")
        raise KeyError("gone")

    found = list(guarded("x", breaks))
    assert [(case.case, case.status) for case in found] == [("x/1", "ok"), ("x/stopped", "fail")]
    assert "KeyError" in found[1].reason
    assert [case.case for case in guarded("y", Case, "y/1", 0.0, 0.0, "ok")] == ["y/1"]


@pytest.mark.parametrize("answer", ["a \0 b", "a \x01 b", "\0", "\x000\x00"])
def test_an_answer_may_hold_any_character(answer, folder):
    mark = unused_text(answer, "\x001\x00")
    assert mark not in answer
    entries = json.loads((folder / "e_generate" / "generate.json").read_text(encoding="utf-8"))
    entry = next(entry for name, entry in entries.items() if "clean" in name and len(entry.get("rounds", [])) > 1)
    entry["rounds"][0]["decode_skip_strip"] = answer
    assert len(generation.questions(entry)) == len(entry["rounds"])
    before = statuses(prompts.run(folder))
    (folder / "e_generate" / "generate.json").write_text(json.dumps(entries), encoding="utf-8")
    after = statuses(prompts.run(folder))
    assert set(after) == set(before)  # the rounds behind the answer differ, and every case is still compared


def test_a_row_that_breaks_hides_no_other(folder):
    before = statuses(prompts.run(folder))
    edit(folder / "b_prompts" / "preprocess_train.json", lambda data: data["cases"][1].update(conversations=5))
    edit(
        folder / "b_prompts" / "tokenizer.json",
        lambda data: next(iter(data["tokenizers"].values()))["rows"][0].pop("text"),
    )
    (folder / "b_prompts" / "keywords_stopping.json").write_text("{")
    after = statuses(prompts.run(folder))
    lost = {name for name in before if name not in after}
    assert {name for name in lost if not name.startswith("b/keywords_stopping")} == {
        next(name for name in before if name.startswith("b/preprocess_train/1/")),
        next(name for name in before if name.startswith("b/tokenizer/") and name.endswith("/0")),
    }
    assert len([name for name, status in after.items() if name.endswith("/stopped") and status == "fail"]) == 3


def test_a_missing_picture_fails_the_cases_that_show_it_and_no_other(folder):
    before = statuses(preprocess.run(folder))
    facts = json.loads((folder / "a_preprocess" / "images.json").read_text(encoding="utf-8"))
    gone = facts["images"][0]
    (folder / gone["file"]).unlink()
    after = statuses(preprocess.run(folder))
    assert {name for name, status in before.items() if after.get(name) != status} == {
        name for name in before if name.endswith(f"/{gone['name']}")
    }
    assert statuses(named.run(folder))[f"named/images.json/{gone['file']}"] == "fail"


def test_a_named_file_that_is_missing_is_a_failure(folder):
    assert "named/MANIFEST.md/keywords_stopping.json" not in statuses(named.run(folder))
    (folder / "b_prompts" / "keywords_stopping.json").unlink()
    assert statuses(named.run(folder))["named/MANIFEST.md/keywords_stopping.json"] == "fail"


def test_every_name_of_the_reference_data_has_a_file():
    for place in ("llava", "internvl_mv"):
        assert [case for case in named.run(golden_root() / place) if case.status != "ok"] == []


def test_sums_lists_and_patterns_are_obeyed(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.npz").write_bytes(b"1")
    (tmp_path / "SHA256SUMS").write_text(
        "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b  ./x/a.npz\n" + "0" * 64 + "  ./x/b.npz\n"
    )
    (tmp_path / "x" / "INFO.json").write_text(json.dumps({"x/c.npz": {"dir": "liuhaotian/gone"}}))
    (tmp_path / "MANIFEST.md").write_text(
        "## x/\n* d_{1,2}.npz, e.npz/json, f{0..1}.png, <case>_g.npz, h_*.npz\n| o/m, n | x |\n"
    )
    (tmp_path / "LEFT_OUT.txt").write_text("d_1.npz\no/*\n")
    wrong = {name.partition("/")[2] for name, status in statuses(named.run(tmp_path)).items() if status == "fail"}
    assert wrong == {
        "SHA256SUMS/x/b.npz", "INFO.json/x/c.npz", "INFO.json/hub/liuhaotian/gone",
        "MANIFEST.md/d_2.npz", "MANIFEST.md/e.npz", "MANIFEST.md/e.json", "MANIFEST.md/f0.png", "MANIFEST.md/f1.png",
    }  # fmt: skip
    (tmp_path / "x" / "a.npz").write_bytes(b"2")
    assert statuses(named.run(tmp_path))["named/SHA256SUMS/x/a.npz"] == "fail"


def test_a_changed_label_in_a_row_that_the_original_lost_is_noticed(folder, monkeypatch):
    path = folder / "b_prompts" / "preprocess_train.json"
    cases = json.loads(path.read_text(encoding="utf-8"))["cases"]
    lost = [i for i, row in enumerate(cases) if row["stdout"].strip() and row["n_target"] == 0]
    assert lost
    prefix = f"b/preprocess_train/{lost[0]}/"

    def found() -> str:
        return next(status for name, status in statuses(prompts.run(folder)).items() if name.startswith(prefix))

    assert found() == "deviates"
    edit(path, lambda data: data["cases"][lost[0]]["labels"].__setitem__(-1, data["cases"][lost[0]]["input_ids"][-1]))
    assert found() == "fail"
    edit(path, lambda data: data["cases"][lost[0]]["labels"].__setitem__(-1, IGNORE_INDEX))
    assert found() == "deviates"
    own = prompts.render

    def other(*arguments, **options):
        """Our labels with one changed."""
        done = own(*arguments, **options)
        at = max(i for i, label in enumerate(done.labels) if label != IGNORE_INDEX)
        done.labels[at] = 5
        return done

    monkeypatch.setattr(prompts, "render", other)
    assert found() == "fail"


def test_numbers_that_are_none_fail():
    from tools.golden.case import near, relative

    nothing = np.array([np.nan])
    assert near("x", nothing, np.array([1.0]), 1.0).status == "fail"
    assert relative("x", float("nan"), 1.0, 1.0).status == "fail"
