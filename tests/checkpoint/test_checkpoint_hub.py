# SPDX-License-Identifier: Apache-2.0
"""Downloads from a local hub that stalls, breaks off, lies and refuses: complete and checked, or an error."""

import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from paddlemix.auto import AutoConfigMIX
from paddlemix.checkpoint import hub as module
from paddlemix.checkpoint.folders import resolve
from paddlemix.checkpoint.hub import fetch_model
from paddlemix.checkpoint.hub_sites import may_fetch
from paddlemix.checkpoint.load import load_model
from paddlemix.utils.download import Limits, download
from paddlemix.utils.errors import CheckpointError, ConfigError, DataError
from paddlemix.utils.files import verify_folder
from tests.checkpoint import checkpoint_kit as kit
from tests.checkpoint import hub_server as faults
from tests.tiny import tiny_model

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(attempts=3, timeout=0.5, pause=0.01, slow_seconds=0.5)
BIG = 3 << 20


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with a tiny LLaVA, its tower and a file of 3 MiB; the machine's own models are elsewhere and empty."""
    root = tmp_path / "served"
    root.mkdir()
    kit.hub(root, tiny_model(2))
    (root / "liuhaotian" / "tiny" / "README.md").write_text("not wanted")
    (root / "liuhaotian" / "tiny" / "chat_template.jinja").write_text("how the model is asked")
    (root / "files").mkdir()
    (root / "files" / "big").write_bytes(np.random.default_rng(0).bytes(BIG))
    server = faults_hub(root)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PADDLEMIX_HUB", server.address)
    monkeypatch.setenv("COMMUNITY_MODEL_PREFIX", f"{server.address}/community")
    yield server
    server.close()


def faults_hub(root: Path) -> faults.Hub:
    server = faults.Hub(root)
    server.server.RequestHandlerClass.server_hub = server
    return server


def big(hub: faults.Hub, tmp_path: Path, **facts) -> tuple[Path, bytes]:
    target, data = tmp_path / "big", (hub.root / "files" / "big").read_bytes()
    download(f"{hub.address}/files/big", target, limits=QUICK, **facts)
    return target, data


def known(hub: faults.Hub) -> dict:
    row = next(row for row in hub.rows(hub.root / "files") if row["path"] == "big")
    return {"size": row["size"], "digest": row["lfs"]["oid"]}


FAULTS = {
    "breaks off twice": faults.cut(2, 1_200_000),
    "stalls once": faults.stall(1, 1_500_000),
    "is busy twice": faults.status(2, 503),
    "wants fewer calls": faults.status(1, 429),
    "gives wrong bytes once": faults.wrong(1),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_file_arrives_whole_through_faults(fault, hub, tmp_path):
    hub.faults["big"] = FAULTS[fault]
    target, data = big(hub, tmp_path, **known(hub))
    assert target.read_bytes() == data
    assert [path.name for path in tmp_path.glob("big*")] == ["big"]


def test_a_transfer_goes_on_where_it_broke_off(hub, tmp_path):
    hub.faults["big"] = faults.cut(1, 2_000_000)
    big(hub, tmp_path, **known(hub))
    ranges = [asked for name, asked in hub.asked if name == "big"]
    assert ranges[0] is None
    assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 1 << 20


def test_a_later_call_goes_on_with_the_rest_of_an_earlier_one(hub, tmp_path):
    hub.faults["big"] = faults.cut(99, 500_000)
    with pytest.raises(DataError, match="given up after 3 attempts"):
        big(hub, tmp_path, **known(hub))
    kept = (tmp_path / "big.part").stat().st_size
    assert kept >= 500_000
    hub.faults.clear()
    target, data = big(hub, tmp_path, **known(hub))
    assert target.read_bytes() == data
    assert hub.asked[-1] == ("big", f"bytes={kept}-")


def test_a_file_without_a_digest_is_not_made_of_two_versions(hub, tmp_path):
    hub.faults["big"] = faults.cut(99, 500_000)
    with pytest.raises(DataError):
        big(hub, tmp_path)
    hub.faults.clear()
    (hub.root / "files" / "big").write_bytes(b"new" * 700_000)
    target, data = big(hub, tmp_path)
    assert target.read_bytes() == data


@pytest.mark.parametrize(
    ("fault", "attempts", "text"),
    [
        (faults.wrong(99), 2, "its SHA-256 is .* damaged on the server or changed on the way"),
        (faults.cut(99, 10_000), 3, "given up after 3 attempts"),
        (faults.stall(99, 10), 3, "given up after 3 attempts"),
        (faults.status(99, 500), 3, "answers 500; given up after 3"),
        (faults.status(99, 403), 1, "does not give it to everybody"),
        (faults.status(99, 404), 1, "no such file"),
    ],
)
def test_a_hopeless_transfer_ends_with_the_reason(fault, attempts, text, hub, tmp_path):
    hub.faults["big"] = fault
    with pytest.raises(DataError, match=text):
        big(hub, tmp_path, **known(hub))
    assert hub.attempts["big"] == attempts
    assert not (tmp_path / "big").exists()


def test_a_server_that_sends_more_than_the_file_is_stopped(hub, tmp_path):
    with pytest.raises(DataError, match="more than the 10 bytes"):
        download(f"{hub.address}/files/big", tmp_path / "big", size=10, digest="0" * 64, limits=QUICK)
    assert not (tmp_path / "big").exists()


def test_a_trickle_is_a_stall(hub, tmp_path):
    def drip(handler, body, attempt):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        for byte in body[:40]:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(0.1)
        handler.close_connection = True
        return True

    hub.faults["big"] = drip
    with pytest.raises(DataError, match="only [0-9]+ bytes in"):
        big(hub, tmp_path, **known(hub))


def test_no_server_is_an_error_with_the_way_out(monkeypatch, tmp_path):
    monkeypatch.setenv("PADDLEMIX_HUB", "http://127.0.0.1:9")
    monkeypatch.setenv("PPMIX_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)liuhaotian/x: not on this machine, .*PADDLEMIX_HUB=off"):
        fetch_model("liuhaotian/x", limits=QUICK)
    assert not (tmp_path / "models" / "liuhaotian" / "x").exists()


def test_a_published_name_becomes_a_checked_folder_that_loads(hub, tmp_path):
    folder = resolve("liuhaotian/tiny", "the model")
    assert folder == tmp_path / "home" / "models" / "liuhaotian" / "tiny"
    assert verify_folder(folder) == []
    assert not (folder / "README.md").exists()
    assert (folder / "chat_template.jinja").is_file()
    assert load_model("liuhaotian/tiny").report.problems() == []  # the tower came by its own name
    before = len(hub.asked)
    assert resolve("liuhaotian/tiny", "the model") == folder
    assert len(hub.asked) == before


def test_a_local_folder_comes_before_the_hub(hub, tmp_path):
    (tmp_path / "home" / "models" / "liuhaotian" / "tiny").mkdir(parents=True)
    resolve("liuhaotian/tiny", "the model")
    assert hub.asked == []


def test_shards_of_an_index_are_downloaded_and_other_formats_left(hub):
    folder = hub.root / "liuhaotian" / "tiny"
    table = {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}
    for shard in table.values():
        (folder / shard).write_bytes(b"x" * 50)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (folder / "pytorch_model.bin").write_bytes(b"y")
    (folder / "model.safetensors").unlink()
    got = fetch_model("liuhaotian/tiny", limits=QUICK)
    names = {path.name for path in got.iterdir()}
    assert names >= {"model.safetensors.index.json", *table.values()}
    assert not names & {"pytorch_model.bin", "model.safetensors"}


@pytest.mark.parametrize("shard", ["../../etc/passwd", "/etc/passwd", "a/b.bin", "", 5])
def test_an_index_cannot_name_files_elsewhere(shard, hub, tmp_path):
    folder = hub.root / "liuhaotian" / "tiny"
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError, match="no plain file name"):
        fetch_model("liuhaotian/tiny", limits=QUICK)
    assert not (tmp_path / "home" / "models" / "liuhaotian" / "tiny").exists()


def test_a_small_file_with_other_content_than_listed_is_refused(hub):
    rows = hub.rows

    def lying(folder):
        return [{**row, "oid": "0" * 40} if row["path"] == "config.json" else row for row in rows(folder)]

    hub.rows = lying
    with pytest.raises(CheckpointError, match="config.json: its content is not what the hub lists"):
        fetch_model("liuhaotian/tiny", limits=QUICK)


def test_the_community_server_needs_no_list(hub):
    folder = hub.root / "paddlemix" / "llava" / "tiny"
    folder.parent.mkdir(parents=True)
    (hub.root / "liuhaotian" / "tiny").rename(folder)
    got = fetch_model("paddlemix/llava/tiny", limits=QUICK)
    assert (got / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not list(got.glob("*.part*"))


def test_a_manifest_on_the_community_server_is_held(hub):
    folder = hub.root / "paddlemix" / "llava" / "tiny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model_state.pdparams").write_bytes(b"weights")
    entries = {"config.json": {"bytes": 2, "sha256": "0" * 64}}
    (folder / "manifest.json").write_text(json.dumps({"files": entries}))
    with pytest.raises(CheckpointError, match="its SHA-256 is"):
        fetch_model("paddlemix/llava/tiny", limits=QUICK)


def test_only_the_configuration_is_downloaded_for_a_configuration(hub, tmp_path):
    config = AutoConfigMIX.from_pretrained("lmsys/tiny")
    assert config.text.hidden_size == 32
    assert not [name for name, _ in hub.asked if name.endswith((".bin", ".safetensors"))]
    assert not (tmp_path / "home" / "models" / "lmsys" / "tiny").exists()


def test_two_that_want_the_same_model_download_it_once(hub):
    hub.faults["model.safetensors"] = lambda handler, body, attempt: time.sleep(0.3)
    threads = [threading.Thread(target=fetch_model, args=("liuhaotian/tiny",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert hub.attempts["model.safetensors"] == 1


def test_a_killed_download_leaves_no_folder_and_is_gone_on_with(hub, tmp_path):
    (hub.root / "liuhaotian" / "tiny" / "pytorch_model.bin").unlink(missing_ok=True)
    hub.faults["model.safetensors"] = faults.stall(1, 2000, seconds=6)
    code = "from paddlemix.checkpoint.hub import fetch_model; fetch_model('liuhaotian/tiny')"
    with subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        part = tmp_path / "home" / "models" / "liuhaotian" / ".part-tiny" / "model.safetensors.part"
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "home" / "models" / "liuhaotian" / "tiny").exists()
    folder = fetch_model("liuhaotian/tiny", limits=QUICK)
    assert verify_folder(folder) == []
    assert hub.asked[-1] == ("model.safetensors", "bytes=2000-")


def test_a_disk_without_room_is_told_before_the_transfer(hub, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: type("U", (), {"free": 1000}))
    monkeypatch.setattr(module, "MIB", 10)
    with pytest.raises(CheckpointError, match="GB are needed"):
        fetch_model("liuhaotian/tiny", limits=QUICK)


@pytest.mark.parametrize(
    "name",
    ["model", "/abs/model", "../x/y", "a/../b", "a b/c", "./a/b", "a/b/c/d", "a/.b", "a//b", "-a/b", "~/m/x", ""],
)
def test_paths_are_never_looked_for_on_the_network(name, hub):
    assert not may_fetch(name)


def test_a_folder_that_is_here_is_no_owner_on_the_hub(hub):
    Path("outputs").mkdir()
    assert not may_fetch("outputs/checkpoint-10")
    assert may_fetch("liuhaotian/llava-v1.5-7b")
    assert may_fetch("paddlemix/llava/llava-v1.5-7b")


@pytest.mark.parametrize("address", ["https://huggingface.co", "hf-mirror", "modelscope"])
def test_a_mistyped_path_is_no_name_of_a_hub(address, hub, monkeypatch):
    monkeypatch.setenv("PADDLEMIX_HUB", address)
    assert not may_fetch("demo_ot/start")
    with pytest.raises(CheckpointError, match=r'no owner "demo_ot" is known; for a model .* write hub:demo_ot/start'):
        resolve("demo_ot/start", "the model")
    assert hub.asked == []
    assert may_fetch("hub:demo_ot/start")
    assert may_fetch("liuhaotian/llava-v1.5-7b")
    Path("openai").mkdir()
    with pytest.raises(CheckpointError, match=r"taken as a path, because openai is a folder here; .*hub:openai/clip"):
        resolve("openai/clip", "the vision tower")


def test_a_file_of_the_folder_in_its_place_is_named_as_that(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        resolve(tmp_path / "config.json", "the model")
    assert f"config.json: is a file, and the model is a folder; give the folder, {tmp_path}" in str(caught.value)


def test_hub_in_front_of_a_name_means_the_hub_whatever_lies_here(hub, tmp_path):
    Path("liuhaotian/tiny").mkdir(parents=True)
    assert resolve("liuhaotian/tiny", "the model") == Path("liuhaotian/tiny").absolute()
    assert resolve("hub:liuhaotian/tiny", "the model") == tmp_path / "home" / "models" / "liuhaotian" / "tiny"
    asked = len(hub.asked)
    assert resolve("hub:liuhaotian/tiny", "the model") == tmp_path / "home" / "models" / "liuhaotian" / "tiny"
    assert len(hub.asked) == asked


def test_modelscope_lists_in_its_own_way_and_is_checked_alike(hub, monkeypatch):
    from paddlemix.checkpoint import hub_sites

    monkeypatch.setitem(hub_sites.HUBS, "modelscope", hub.address)
    monkeypatch.setenv("PADDLEMIX_HUB", "modelscope")
    folder = fetch_model("liuhaotian/tiny", limits=QUICK)
    assert verify_folder(folder) == []
    assert {"config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    hub.faults["model.safetensors"] = faults.wrong(9)
    with pytest.raises(CheckpointError, match="its SHA-256 is"):
        fetch_model("openai/tiny-clip", limits=QUICK)


def test_a_hub_that_nobody_knows_is_an_error_that_names_those_that_are(monkeypatch):
    monkeypatch.setenv("PADDLEMIX_HUB", "modelscop")
    with pytest.raises(ConfigError, match=r'PADDLEMIX_HUB="modelscop", did you mean "modelscope".*one of huggingface'):
        may_fetch("liuhaotian/tiny")


def test_progress_tells_bytes_rate_and_the_time_that_is_left(hub, caplog, monkeypatch):
    from paddlemix.utils import meter

    now = [0.0]
    found = meter.Meter("x", clock=lambda: now[0])
    found.expect(400_000_000)
    now[0] = 2.0
    found.receive(100_000_000)
    assert found.line() == "0.10 GB of 0.40 GB, 50.0 MB/s, 6 s left"
    now[0] = 400.0
    assert found.line().endswith("20 min 0 s left")
    now[0] = 40_000.0
    assert found.line().endswith("33 h 20 min left")
    monkeypatch.setattr(meter, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(logging.getLogger("paddlemix"), "propagate", True)
    with caplog.at_level("INFO", logger="paddlemix"):
        fetch_model("liuhaotian/tiny", limits=QUICK)
    lines = [record.message for record in caplog.records if " MB/s" in record.message]
    last = re.search(r"liuhaotian/tiny: (\S+ MB) of (\S+ MB), \S+ MB/s$", lines[-1])
    assert last[1] == last[2]


def test_a_cache_of_huggingface_hub_is_used_before_the_hub_is_asked(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    snapshot = tmp_path / "hf" / "models--liuhaotian--tiny" / "snapshots" / "abc"
    shutil.copytree(hub.root / "liuhaotian" / "tiny", snapshot)
    assert resolve("liuhaotian/tiny", "the model") == snapshot
    assert resolve(snapshot.parents[1], "the model") == snapshot
    (snapshot / "model.safetensors").unlink()  # the small files alone, as a look at the tokenizer leaves them
    assert resolve("liuhaotian/tiny", "the model", weights=False) == snapshot
    assert hub.asked == []
    assert resolve("liuhaotian/tiny", "the model") == tmp_path / "home" / "models" / "liuhaotian" / "tiny"


def test_off_downloads_nothing(hub, monkeypatch):
    monkeypatch.setenv("PADDLEMIX_HUB", "off")
    with pytest.raises(CheckpointError, match='the model "liuhaotian/tiny" is not on this machine; looked for'):
        resolve("liuhaotian/tiny", "the model")
    assert hub.asked == []


def test_a_name_that_the_hub_does_not_know_is_an_error(hub):
    with pytest.raises(CheckpointError, match="no such file"):
        fetch_model("liuhaotian/none", limits=QUICK)
