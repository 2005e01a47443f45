# SPDX-License-Identifier: Apache-2.0
"""Graphs of every family give the ids of the original code: golden cases, SigLIP and Qwen2, rotary scalings."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlemix.checkpoint.load import load_model
from paddlemix.generation.engine import generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.splice.plan import PlanRow, build_plan
from tests.export.static_kit import static_of
from tests.models.test_models_decoders import DATA as DECODERS
from tests.models.test_models_decoders import NUMBERS as DECODED
from tests.models.test_models_decoders import PROMPT, ROW, SCALINGS
from tests.models.test_models_onevision import CASES, DATA, NUMBERS, row_of
from tools.golden import common, generation, internvl_model, mv_models


def bad(cases: Any) -> list[Any]:
    return [case for case in cases if case.status != "ok"]


@pytest.mark.golden
@pytest.mark.parametrize("prefix", ["v15", "v16v", "v16m"])
def test_llava_answers_with_the_ids_of_the_original(golden_llava: Path, tmp_path: Path, prefix: str) -> None:
    entries = json.loads((golden_llava / generation.FILE).read_text(encoding="utf-8"))
    mine = {name: entry for name, entry in entries.items() if name.startswith(f"{prefix}_")}
    if not mine:
        pytest.skip(f"the small golden copy has no {prefix}; set PADDLEMIX_GOLDEN to the full data")
    golden = generation._Golden(golden_llava, prefix)
    golden.model = static_of(golden.model, tmp_path)
    cases = [case for name, entry in mine.items() for case in golden.cases(name, entry)]
    assert bad(cases) == []
    assert len(cases) >= len(mine) == 7


@pytest.mark.golden
@pytest.mark.parametrize("family", [internvl_model, mv_models], ids=["internvl", "mv_llava"])
def test_internvl_and_multi_view_answer_with_the_ids_of_the_original(
    golden_internvl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: Any
) -> None:
    root = golden_internvl / family.FOLDER
    chat = next(path.parent for path in sorted(root.glob("*/config.json")) if "mm_vision_tower" in path.read_text())
    golden = family.Golden(golden_internvl, chat)
    static = static_of(golden.load().model, tmp_path)
    used = []

    def by_graphs(_: Any, *given: Any) -> Any:
        used.append(1)
        return generate_batch(static, *given)

    monkeypatch.setattr(common, "generate_batch", by_graphs)
    cases = list(golden._generate())
    assert bad(cases) == []
    assert used, "at least one case generates"


@pytest.mark.parametrize("case", CASES)
def test_siglip_and_qwen2_answer_with_the_ids_of_transformers(tmp_path: Path, case: str) -> None:
    model = load_model(DATA / CASES[case]).model
    config = model.config
    static = static_of(model, tmp_path)
    plan = build_plan([row_of(case, config)], tokens_per_tile=config.tokens_per_tile, padding_side="left")
    greedy = NUMBERS[f"{case}/greedy"].tolist()
    decoding = Decoding(max_new_tokens=len(greedy), eos_ids=(-1,))
    assert generate_batch(static, plan, NUMBERS[f"{case}/pixels"], decoding)[0] == greedy


@pytest.mark.parametrize(("kind", "scaling"), [("llama", "llama3"), ("qwen2", "dynamic")])
def test_rotary_scalings_answer_with_the_ids_of_transformers(tmp_path: Path, kind: str, scaling: str) -> None:
    folder = shutil.copytree(DECODERS / kind, tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_parameters": SCALINGS[scaling]}))
    static = static_of(load_model(folder).model, tmp_path)
    plan = build_plan([PlanRow(np.array(ROW[:PROMPT]), [])], tokens_per_tile=1, padding_side="left")
    greedy = DECODED[f"{kind}/{scaling}/greedy"].tolist()
    assert generate_batch(static, plan, None, Decoding(max_new_tokens=len(greedy), eos_ids=(-1,)))[0] == greedy
