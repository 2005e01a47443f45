# SPDX-License-Identifier: Apache-2.0
"""Generated ids equal the original's, and the comparison can tell when they do not."""

import json
from pathlib import Path

import pytest

from tools.golden import generation


@pytest.mark.golden
def test_every_generated_id_equals_the_original(golden_llava: Path) -> None:
    cases = list(generation.run(golden_llava))
    assert any(case.case.endswith("session/round2") for case in cases)
    assert {case.status for case in cases} == {"ok"}, [case for case in cases if case.status != "ok"]


@pytest.mark.golden
def test_a_changed_id_fails_its_case_only(golden_llava: Path, tmp_path: Path) -> None:
    data = json.loads((golden_llava / generation.FILE).read_text(encoding="utf-8"))
    names = [name for name in data if name.endswith(("_textonly", "_batch_left"))][:2]
    kept = {name: data[name] for name in names}
    next(entry for name, entry in kept.items() if name.endswith("_textonly"))["output_ids"][5] += 1
    (tmp_path / "e_generate").mkdir()
    (tmp_path / generation.FILE).write_text(json.dumps(kept), encoding="utf-8")
    for name in ("hub", "images", "a_preprocess"):
        (tmp_path / name).symlink_to(golden_llava / name)
    found = {case.case.rpartition("/")[2]: case.status for case in generation.run(tmp_path)}
    assert found == {name: "fail" if name.endswith("_textonly") else "ok" for name in names}


def test_a_difference_counts_unless_the_original_itself_could_not_tell() -> None:
    near = generation.compare("x", [5, 6], [1, 5, 7], [0.1, 0.0005])
    far = generation.compare("x", [5, 6], [1, 5, 7], [0.1, 0.002])
    assert near.status == "ok"
    assert "margin is 5.0e-04" in near.reason
    assert far.status == "fail"
    assert generation.compare("x", [5], [1, 5, 7], None).status == "fail"
