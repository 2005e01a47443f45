# SPDX-License-Identifier: Apache-2.0
"""Files are complete or absent."""

import errno
import os
from pathlib import Path

import pytest

from paddlemix.utils import files
from paddlemix.utils.errors import CheckpointError, TrainingError


def test_an_atomic_write_replaces_the_file_and_leaves_nothing_else(tmp_path):
    files.atomic_write(tmp_path / "a", b"old")
    files.atomic_write(tmp_path / "a", "new ü")
    assert (tmp_path / "a").read_bytes() == "new ü".encode()
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_leaves_the_old_file_and_names_path_and_free_space(tmp_path, monkeypatch):
    files.atomic_write(tmp_path / "a", b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(TrainingError, match=r"a: cannot be written \(No space .*\); \d+ MiB are free, and 0 MiB"):
        files.atomic_write(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_published_folder_verifies(tmp_path):
    with files.publish_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_bytes(b"123")
        assert not (tmp_path / "out").exists()
    assert files.verify_folder(tmp_path / "out") == []
    assert sorted(os.listdir(tmp_path)) == ["out"]


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda file: file.write_bytes(b"124"), "SHA-256 differs"),
        (lambda file: file.write_bytes(b"1234"), "4 bytes, the manifest says 3"),
        (lambda file: file.unlink(), "missing"),
    ],
)
def test_a_spoilt_folder_does_not_verify(tmp_path, spoil, text):
    with files.publish_folder(tmp_path / "out") as folder:
        (folder / "x").write_bytes(b"123")
    spoil(tmp_path / "out" / "x")
    (problem,) = files.verify_folder(tmp_path / "out")
    assert text in problem


def test_a_folder_without_manifest_does_not_verify(tmp_path):
    assert files.verify_folder(tmp_path) != []


def test_a_body_that_fails_leaves_the_older_folder_alone(tmp_path):
    with files.publish_folder(tmp_path / "out") as folder:
        (folder / "x").write_bytes(b"old")

    def fails_midway():
        with files.publish_folder(tmp_path / "out", replace=True) as folder:
            (folder / "x").write_bytes(b"new")
            raise KeyError

    with pytest.raises(KeyError):
        fails_midway()
    assert (tmp_path / "out" / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out"]


def test_replacing_a_folder_removes_what_the_new_one_lacks(tmp_path):
    for name in ("x", "y"):
        with files.publish_folder(tmp_path / "out", replace=True) as folder:
            (folder / name).touch()
    assert sorted(os.listdir(tmp_path / "out")) == ["manifest.json", "y"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_occupied_folder_is_not_replaced_unasked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(CheckpointError, match="exists already"), files.publish_folder(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    (tmp_path / ".tmp-checkpoint-3-99").mkdir()
    (tmp_path / ".tmp-file-99").touch()
    (tmp_path / "checkpoint-2").mkdir()
    assert len(files.remove_leftovers(tmp_path)) == 2
    assert os.listdir(tmp_path) == ["checkpoint-2"]


def test_sha256_is_the_known_one(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert files.sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_every_file_of_a_published_folder_and_the_folders_are_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    real = os.fsync

    def fsync(handle):
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with files.publish_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "a").write_bytes(b"1")
        (folder / "sub" / "b").write_bytes(b"2")
    before = {path.relative_to(folder).as_posix() for path in flushed[:-1]}
    assert before == {"a", "sub/b", "sub", "manifest.json", "."}
    assert flushed[-1] == tmp_path
