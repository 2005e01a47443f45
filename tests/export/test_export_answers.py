# SPDX-License-Identifier: Apache-2.0
"""Graphs answer as the dynamic model does: rounds, images, batches, and every way of picking the next id."""

from typing import Any

import numpy as np
import paddle
import pytest

from paddlemix.export import static_model
from paddlemix.export.graphs import LONG
from paddlemix.generation.engine import encode_images, generate_batch
from paddlemix.generation.sampling import Decoding
from paddlemix.models.llava import LlavaForCausalLM
from paddlemix.splice.plan import PlanRow, build_plan
from tests.export.static_kit import CLOSE, DECODINGS, WIDE, Twins, prompts, talk


@pytest.mark.parametrize("name", DECODINGS)
def test_a_conversation_of_rounds_and_images_is_that_of_the_dynamic_model(twins: Twins, name: str) -> None:
    static, dynamic = talk(twins.static, DECODINGS[name]), talk(twins.dynamic, DECODINGS[name])
    assert static == dynamic
    assert static[1][1] > 0, "the second round goes on in the cache of the first"


def test_rows_that_share_steps_get_what_each_gets_from_the_dynamic_model(twins: Twins) -> None:
    decoding = Decoding(max_new_tokens=8)
    together = twins.static.answer(prompts(twins.static), decoding, batch_size=2)
    assert [answer.ids for answer in together] == [
        answer.ids for answer in twins.dynamic.answer(prompts(twins.dynamic), decoding)
    ]


def test_features_and_the_scores_of_rows_padded_on_the_left_are_close(twins: Twins) -> None:
    features = [predictor.picture(WIDE).features.numpy() for predictor in (twins.static, twins.dynamic)]
    assert np.abs(features[0] - features[1]).max() <= CLOSE
    static, dynamic = twins.static.scores(prompts(twins.static)), twins.dynamic.scores(prompts(twins.dynamic))
    assert np.abs(static - dynamic).max() <= CLOSE * max(1.0, np.abs(dynamic).max())


def test_a_prompt_in_pieces_is_the_prompt_as_a_whole(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_model, "PIECE", 7)
    assert talk(twins.static, DECODINGS["greedy"]) == talk(twins.dynamic, DECODINGS["greedy"])
    static, dynamic = twins.static.scores(prompts(twins.static)), twins.dynamic.scores(prompts(twins.dynamic))
    assert np.abs(static - dynamic).max() <= CLOSE * max(1.0, np.abs(dynamic).max())


@pytest.mark.parametrize("piece", [static_model.PIECE, LONG + 2])
def test_long_pieces_in_blocks_give_the_scores_of_the_dynamic_model(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(static_model, "PIECE", piece)
    found = []
    for one in (twins.static, twins.dynamic):
        asked = [one.prompt(one.question("what is this? " * times, 1), [one.picture(WIDE)]) for times in (70, 90)]
        assert LONG < asked[0].length < asked[1].length, "and the first is padded on the left"
        found.append(one.scores(asked))
    assert np.abs(found[0] - found[1]).max() <= CLOSE * max(1.0, np.abs(found[1]).max())


@pytest.mark.parametrize("piece", [256, 7])
def test_rows_padded_on_the_right_with_a_static_cache(
    twins: Twins, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(static_model, "PIECE", piece)
    model, pixels = twins.static.model, twins.static.processor(WIDE)
    rows = [PlanRow([1, 9, -200, *range(20, 20 + more)], [pixels.layout]) for more in (2, 9)]
    plan = build_plan(rows, tokens_per_tile=model.config.tokens_per_tile)
    tiles, decoding = np.concatenate([pixels.pixels] * 2), Decoding(max_new_tokens=6, eos_ids=())
    made = [
        generate_batch(one, plan, tiles, decoding, cache=one.new_static_cache(64))
        for one in (model, twins.dynamic.model)
    ]
    assert made[0] == made[1]


def test_what_a_graph_gave_stays_when_it_runs_again(twins: Twins) -> None:
    model, tiles = twins.static.model, twins.static.processor(WIDE).pixels
    first = model.encode_images(paddle.to_tensor(tiles[:1]))
    before = first.numpy().copy()
    model.encode_images(paddle.to_tensor(tiles[1:2]))
    assert np.array_equal(first.numpy(), before)
    assert encode_images(model, tiles).shape[0] == len(tiles)


def test_no_layer_of_the_model_is_built_to_answer(twins: Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlemix.export.opening import open_static

    def gone(*_: Any, **__: Any) -> None:
        raise AssertionError("the graphs stand alone")

    monkeypatch.setattr(LlavaForCausalLM, "__init__", gone)
    monkeypatch.setattr(LlavaForCausalLM, "decode", gone)
    opened = open_static(twins.export, twins.export, device="cpu")
    assert talk(opened, DECODINGS["greedy"]) == talk(twins.static, DECODINGS["greedy"])


def test_the_weights_of_the_decoder_are_stored_once(twins: Twins) -> None:
    stored = (twins.export / "encode_text" / "llama.pdiparams").stat().st_size
    names = [name for name, _ in twins.dynamic.model.named_parameters() if "vision_tower" not in name]
    parameters = dict(twins.dynamic.model.named_parameters())
    own = 4 * sum(int(parameters[name].size) for name in names if "mm_projector" not in name)
    assert own <= stored <= 1.05 * own
