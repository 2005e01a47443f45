# SPDX-License-Identifier: Apache-2.0
"""What was trained, which share of it is padding, and which share of a device's peak that took."""

import numpy as np
import pytest

from paddlemix.settings.memory import count_parameters
from paddlemix.trainer.throughput import PEAKS, Done, device_peak, operations, peak_of
from tests.tiny import tiny_config
from tests.trainer.trainer_kit import Rows, make_trainer, settings


def batch(lengths, width, segments=None):
    places = np.arange(width)[None]
    positions = np.where(places < np.array(lengths)[:, None], places, 0)
    found = {"token_ids": np.zeros((len(lengths), width), np.int64), "positions": positions}
    if segments is not None:
        found["segments"] = np.array(segments)
    return found


def test_padding_is_what_holds_no_position_of_a_row():
    done = Done()
    done.add(batch([3, 5], 8))
    assert (done.tokens, done.positions, done.squares, done.rows) == (8, 16, 9 + 25, 2)
    assert done.padding == 0.5
    done.add(batch([4, 2], 4, [[1, 1, 2, 2], [1, 1, 0, 0]]))
    assert (done.tokens, done.squares) == (8 + 6, 34 + 4 + 4 + 4)  # packed samples attend to themselves
    assert done.since(Done(tokens=8)).tokens == 6


def test_operations_are_six_for_each_number_and_position_when_all_trains():
    config = tiny_config()
    counts = count_parameters(config)
    table = config.text.vocab_size * config.text.hidden_size
    everything = {"decoder": counts.decoder - table, "projector": counts.projector, "tower": counts.tower}
    done = Done(tokens=100, tiles=3)
    seen = 3 * config.vision.grid**2
    wanted = 6.0 * (
        100 * (counts.decoder - table) + 3 * config.tokens_per_tile * counts.projector + seen * counts.tower
    )
    assert operations(done, config, everything) == pytest.approx(wanted)
    frozen = operations(done, config, {"decoder": 0, "projector": 0, "tower": 0})
    parts = 100 * 4.0 * (counts.decoder - table) + 2.0 * 3 * config.tokens_per_tile * counts.projector
    assert frozen == pytest.approx(parts + 2.0 * seen * counts.tower)
    attention = operations(Done(squares=10), config, everything)
    width = config.text.num_attention_heads * config.text.width_per_head
    assert attention == 12.0 * config.text.num_hidden_layers * width * 10  # PaLM, appendix B


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA L40S", 362.05e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("910B3", 313e12),
        ("NVIDIA A1000 Laptop GPU", None),
        ("NVIDIA GeForce GTX 1080", None),
        ("910A", None),
    ],
)
def test_the_peak_of_a_device_is_known_or_not_invented(name, peak):
    assert peak_of(name) == peak
    assert len(PEAKS) > 10


def test_a_cpu_has_no_peak_and_its_log_no_mfu(tmp_path):
    assert device_peak("cpu") is None
    trainer = make_trainer(settings(tmp_path, max_steps=2))
    trainer.train()
    entry = trainer.state.log_history[0]
    assert "mfu" not in entry
    assert 0 <= entry["padding"] < 1
    assert entry["max_memory_resident"] > 0.05


def test_a_run_in_bfloat16_on_a_known_device_says_its_mfu(tmp_path, monkeypatch):
    monkeypatch.setattr("paddlemix.trainer.step_log.device_peak", lambda device: 1e12)
    trainer = make_trainer(settings(tmp_path, max_steps=2))
    trainer.args.bf16 = True
    share = trainer._mfu(Done(tokens=1e6), 2.0)
    done = operations(Done(tokens=1e6), trainer.model.config, _all(trainer))
    assert share == pytest.approx(done / 2e12)


def _all(trainer):
    from paddlemix.trainer.step_log import trained_numbers

    found = trained_numbers(trainer.plan)
    assert sum(found.values()) == sum(part.trainable for part in trainer.plan.parts)
    return found


def test_what_a_method_notes_is_a_mean_of_the_steps_in_every_entry(tmp_path):
    trainer = make_trainer(settings(tmp_path, max_steps=4, logging_steps=2), rows=Rows(12, equal=True))
    noted = iter([1.0, 2.0, 5.0, 9.0])
    step = trainer.compute_loss

    def compute(*args, **keys):
        trainer.note(**{"rewards/chosen": next(noted)})
        return step(*args, **keys)

    trainer.compute_loss = compute
    trainer.train()
    found = [entry["rewards/chosen"] for entry in trainer.state.log_history if "loss" in entry]
    assert found == [1.5, 7.0]
