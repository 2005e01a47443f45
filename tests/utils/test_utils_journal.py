# SPDX-License-Identifier: Apache-2.0
"""The journal of a run that goes on after any kill."""

import contextlib
import os
import resource

import pytest

from paddlemix.utils.errors import ConfigError, TrainingError
from paddlemix.utils.journal import Journal


def opened(path, **settings):
    return Journal(path, settings, lambda batch, records: True)


def test_a_batch_is_on_the_disk_when_add_returns(tmp_path, monkeypatch):
    real, synced = os.fsync, []

    def fsync(handle):
        real(handle)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = opened(tmp_path / "j", seed=1)
    for batch in range(3):
        journal.add(batch, [{"number": batch}])
        assert synced[-1] == (tmp_path / "j").stat().st_size, batch
    assert len(synced) == 4  # one for the settings
    journal.close()


def test_finished_batches_come_back_and_a_line_that_was_cut_is_done_again(tmp_path):
    journal = opened(tmp_path / "j", seed=1)
    journal.add(0, [{"said": "a"}])
    journal.add(1, [{"said": "b"}])
    journal.close()
    with open(tmp_path / "j", "r+b") as stream:
        stream.truncate((tmp_path / "j").stat().st_size - 3)
    again = opened(tmp_path / "j", seed=1)
    assert again.done == {0: [{"said": "a"}]}
    again.close()


@contextlib.contextmanager
def full_disk(size):
    """Files may not become larger than ``size`` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_with_the_file_and_what_was_written_before_is_kept(tmp_path):
    journal = opened(tmp_path / "j", seed=1)
    journal.add(0, [{"said": "a" * 1000}])
    with full_disk(3000):
        with pytest.raises(TrainingError, match=r"/j: cannot be written .*Free some space"):
            journal.add(1, [{"said": "b" * 5000}])
        journal.close()
    again = opened(tmp_path / "j", seed=1)
    assert again.done == {0: [{"said": "a" * 1000}]}
    again.add(1, [{"said": "b"}])
    again.close()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": 2}, "had seed 1, this one has 2;"),
        ({"seed": 1, "more": 3}, "had no more, this one has 3;"),
        ({}, "had seed 1, this one has none;"),
        ({"seed": None}, "had seed 1, this one has none;"),
    ],
)
def test_the_journal_of_other_settings_is_refused_by_the_name_of_the_first_that_differs(tmp_path, other, said):
    opened(tmp_path / "j", seed=1).close()
    with pytest.raises(ConfigError, match=said):
        opened(tmp_path / "j", **other)
