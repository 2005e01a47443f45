# SPDX-License-Identifier: Apache-2.0
"""Sampling: the distribution that is drawn from, and what a seed fixes."""

import numpy as np
import pytest

from paddlemix.generation.sampling import Decoding, Sampler, TokenLogprob, adjusted, penalise_repeats
from paddlemix.utils.errors import ConfigError

SCORES = np.log(np.array([0.1, 0.5, 0.05, 0.3, 0.05], dtype=np.float32))


def test_temperature_zero_takes_the_best_and_the_first_of_equals() -> None:
    assert Sampler(Decoding(temperature=0.0)).pick(np.array([0.0, 2.0, 2.0, 1.0])) == 1


def test_temperature_divides_the_scores() -> None:
    chances = Sampler(Decoding(temperature=0.5)).probabilities(SCORES)
    expected = np.exp(SCORES) ** 2
    assert np.allclose(chances, expected / expected.sum(), atol=1e-7)


def test_a_tiny_temperature_neither_overflows_nor_loses_the_best() -> None:
    assert Sampler(Decoding(temperature=1e-300)).pick(SCORES * 1000) == 1


def test_top_k_keeps_the_k_likeliest() -> None:
    chances = Sampler(Decoding(temperature=1.0, top_k=2)).probabilities(SCORES)
    assert np.allclose(chances, [0, 0.625, 0, 0.375, 0], atol=1e-7)


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    chances = Sampler(Decoding(temperature=1.0, top_p=0.75)).probabilities(SCORES)
    assert np.allclose(chances, [0, 0.625, 0, 0.375, 0], atol=1e-7)


def test_top_p_keeps_at_least_the_best() -> None:
    assert np.allclose(Sampler(Decoding(temperature=1.0, top_p=1e-9)).probabilities(SCORES), [0, 1, 0, 0, 0])


def test_top_p_stops_where_the_sum_is_reached_exactly() -> None:
    assert Sampler(Decoding(temperature=1.0, top_p=0.5)).probabilities(np.zeros(4)).tolist() == [0.5, 0.5, 0, 0]


def test_top_p_counts_what_top_k_left() -> None:
    # After top-k 2 the best has 0.625, so 0.6 is reached by it alone; before top-k it would not be.
    assert np.count_nonzero(Sampler(Decoding(temperature=1.0, top_k=2, top_p=0.6)).probabilities(SCORES)) == 1
    assert np.count_nonzero(Sampler(Decoding(temperature=1.0, top_p=0.6)).probabilities(SCORES)) == 2


def test_drawn_frequencies_are_the_probabilities() -> None:
    sampler = Sampler(Decoding(temperature=1.0, seed=3))
    drawn = np.bincount([sampler.pick(SCORES) for _ in range(4000)], minlength=5) / 4000
    assert np.abs(drawn - np.exp(SCORES)).max() < 0.03


def test_one_seed_and_stream_give_the_same_ids_and_another_stream_others() -> None:
    decoding = Decoding(temperature=1.0, seed=5)
    flat = np.zeros(1000, dtype=np.float32)

    def draw(stream: tuple[int, ...]) -> list[int]:
        sampler = Sampler(decoding, stream)
        return [sampler.pick(flat) for _ in range(5)]

    assert draw((0,)) == draw((0,))
    assert draw((0,)) != draw((1,))


def test_repetition_penalty_lowers_seen_ids_of_either_sign_once() -> None:
    scores = np.array([2.0, -2.0, 1.0], dtype=np.float32)
    assert penalise_repeats(scores, [0, 1, 0], 2.0).tolist() == [1.0, -4.0, 1.0]
    assert scores.tolist() == [2.0, -2.0, 1.0]


def test_min_p_drops_ids_below_a_share_of_the_likeliest_one() -> None:
    chances = Sampler(Decoding(temperature=1.0, min_p=0.5)).probabilities(SCORES)
    assert np.allclose(chances, [0, 0.625, 0, 0.375, 0], atol=1e-7)


def test_min_p_counts_what_top_p_left() -> None:
    chances = Sampler(Decoding(temperature=1.0, top_p=0.4, min_p=0.1)).probabilities(SCORES)
    assert chances.tolist() == [0, 1, 0, 0, 0]


def test_frequency_counts_each_time_and_presence_once() -> None:
    scores = np.zeros(4, dtype=np.float32)
    decoding = Decoding(frequency_penalty=0.5, presence_penalty=0.25)
    assert adjusted(scores, [1, 2, 1], decoding).tolist() == [0.0, -1.25, -0.75, 0.0]
    assert scores.tolist() == [0.0] * 4


def test_a_bias_is_added_before_the_penalties_and_may_name_an_id_twice() -> None:
    decoding = Decoding(logit_bias=((0, 3.0), (2, 1.0), (0, 1.0)), repetition_penalty=2.0)
    assert adjusted(np.zeros(3, dtype=np.float32), [0], decoding).tolist() == [2.0, 0.0, 1.0]


def test_a_bias_of_an_id_beyond_the_vocabulary_is_an_error() -> None:
    with pytest.raises(ConfigError, match="logit_bias names id 5: the vocabulary has the ids 0 to 4"):
        adjusted(SCORES, [], Decoding(logit_bias=((5, 1.0),)))


def test_log_probabilities_are_the_models_own_whatever_was_changed_to_draw() -> None:
    sampler = Sampler(Decoding(temperature=2.0, seed=1, logit_bias=((4, 100.0),), logprobs=2))
    assert sampler.next(SCORES) == 4
    assert sampler.logprobs == [
        TokenLogprob(4, pytest.approx(np.log(0.05)), ((1, pytest.approx(np.log(0.5))), (3, pytest.approx(np.log(0.3)))))
    ]


def test_an_answer_without_log_probabilities_keeps_none() -> None:
    sampler = Sampler(Decoding())
    sampler.next(SCORES)
    assert sampler.logprobs == []


@pytest.mark.parametrize(
    "changed",
    [{"temperature": 1.0}, {"presence_penalty": 1.0}, {"frequency_penalty": -1.0}, {"logit_bias": ((1, 1.0),)},
     {"repetition_penalty": 1.1}, {"logprobs": 0}],
)  # fmt: skip
def test_only_a_plain_greedy_answer_needs_no_scores_on_the_host(changed: dict[str, float]) -> None:
    assert Decoding().takes_likeliest
    assert not Decoding(**changed).takes_likeliest


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: expected a whole number from 1"),
        ({"temperature": -0.1}, "temperature is -0.1: expected 0 (greedy) or a positive number"),
        ({"temperature": float("nan")}, "temperature is nan: expected 0 (greedy) or a positive number"),
        ({"top_p": 0.0}, "top_p is 0.0: expected above 0 and at most 1 (1 is off)"),
        ({"top_k": -1}, "top_k is -1: expected 0 (off) or a positive whole number"),
        ({"num_beams": 0}, "num_beams is 0: expected a whole number from 1 to 64"),
        ({"num_beams": 1_000_000}, "num_beams is 1000000: expected a whole number from 1 to 64"),
        ({"min_p": 1.0}, "min_p is 1.0: expected from 0 (off) to below 1"),
        ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5: expected from -2 to 2 (0 is off)"),
        ({"presence_penalty": -3.0}, "presence_penalty is -3.0: expected from -2 to 2 (0 is off)"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias is -1: expected ids of the vocabulary"),
        ({"logit_bias": ((1, float("nan")),)}, "logit_bias of id 1 is nan: expected a number"),
        ({"logit_bias": {"a": 1}}, "logit_bias is (('a', 1),): expected pairs of an id (a whole number) and a number"),
        ({"logit_bias": {1: "x"}}, "logit_bias is ((1, 'x'),): expected pairs of an id (a whole number) and a number"),
        ({"logit_bias": 5}, "logit_bias is 5: expected pairs of an id (a whole number) and a number"),
        ({"stop": 5}, "stop is 5: expected a string, or a sequence of them"),
        ({"stop": b"x"}, "stop is b'x': expected a string, or a sequence of them"),
        ({"stop": ["a", 1]}, "stop is ['a', 1]: expected a string, or a sequence of them"),
        ({"stop_ids": "ab"}, "stop_ids is ab: expected a sequence of ids (whole numbers)"),
        ({"stop_ids": (1.5,)}, "stop_ids is (1.5,): expected a sequence of ids (whole numbers)"),
        ({"stop_ids": 5}, "stop_ids is 5: expected a sequence of ids (whole numbers)"),
        ({"logprobs": 21}, "logprobs is 21: expected 0 to 20"),
        ({"num_beams": 2, "logprobs": 1}, "num_beams 2 with logprobs 1: use num_beams 1 with it"),
        ({"seed": -3}, "seed is -3: expected a whole number from 0 to 2^64 - 1"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_expected(wrong: dict[str, float], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Decoding(**wrong)
    assert str(caught.value) == text


@pytest.mark.parametrize("name", ["num_beams", "max_new_tokens", "top_k", "seed", "temperature", "top_p"])
def test_a_number_without_end_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^{name} is 1000.* expected") as caught:
        Decoding(**{name: 10**400})
    assert len(str(caught.value)) < 400


def test_beams_with_a_temperature_are_refused_and_not_ignored() -> None:
    with pytest.raises(ConfigError, match="beam search is not random; use temperature 0"):
        Decoding(num_beams=2, temperature=0.2)


def test_one_stop_string_and_a_mapping_of_biases_are_what_they_say() -> None:
    given = Decoding(stop="zut", logit_bias={"5": 1.5, 7: -1})
    assert given == Decoding(stop=("zut",), logit_bias=((5, 1.5), (7, -1)))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"seed": "a"}, "seed is a: expected a whole number"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5: expected a whole number"),
        ({"top_k": True}, "top_k is True: expected a whole number"),
        ({"temperature": "0"}, "temperature is 0: expected a number"),
    ],
)
def test_a_value_of_another_kind_is_named(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Decoding(**wrong)
