# SPDX-License-Identifier: Apache-2.0
"""Which machine of how many, where they meet, and what a signal does: the scripts for clusters, on made-up machines."""

import os
import re
import signal
import subprocess
import time

import pytest

from tests.deploy.launch_kit import FAKE_PYTHON, FAKE_RANK, ROOT, launched, tool


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}, "--master 10.0.0.1:36677 --nnodes 2 --rank 1"),
        (
            {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "04000"},
            "--master h:4000 --nnodes 2 --rank 0",
        ),
        ({"NNODES": "010", "NODE_RANK": "08", "MASTER_ADDR": "h"}, "--master h:36677 --nnodes 10 --rank 8"),
        (
            {"VC_MASTER_HOSTS": "j-master-0.j", "VC_WORKER_HOSTS": "j-worker-0.j,j-worker-1.j", "VC_TASK_INDEX": "1",
             "HOST": "j-worker-1"},
            "--master j-master-0.j:36677 --nnodes 3 --rank 2",
        ),
        (
            {"VC_MASTER_HOSTS": "j-master-0.j", "VC_WORKER_HOSTS": "j-worker-0.j", "VC_TASK_INDEX": "0",
             "HOST": "j-master-0.j.ns.svc"},
            "--master j-master-0.j:36677 --nnodes 2 --rank 0",
        ),
        (
            {"VC_TASK": "WORKER", "VC_MASTER_HOSTS": "m.j", "VC_WORKER_HOSTS": "a.j,b.j", "VC_TASK_INDEX": "1"},
            "--master a.j:36677 --nnodes 2 --rank 1",
        ),
        ({"VC_MASTER_HOSTS": "a.j,b.j", "VC_TASK_INDEX": "1"}, "--master a.j:36677 --nnodes 2 --rank 1"),
        (
            {"SLURM_JOB_NODELIST": "node[07-08]", "SLURM_NNODES": "2", "SLURM_NODEID": "1"},
            "--master node07:36677 --nnodes 2 --rank 1",
        ),
        (
            {"VC_WORKER_HOSTS": "j-worker-0.j,j-worker-1.j", "VC_TASK_INDEX": "1"},
            "--master j-worker-0.j:36677 --nnodes 2 --rank 1",
        ),
        ({"VC_TASK": "PS", "VC_PS_HOSTS": "a,b,c", "VC_TASK_INDEX": "2"}, "--master a:36677 --nnodes 3 --rank 2"),
        (
            {"MA_NUM_HOSTS": "2", "MA_NUM_GPUS": "8", "MA_CURRENT_IP": "10.0.0.3", "VC_TASK_INDEX": "0",
             "VC_WORKER_HOSTS": "ma-0.x,ma-1.x"},
            "--master ma-0.x:36677 --nnodes 2 --rank 0",
        ),
        (
            {"PADDLE_TRAINERS_NUM": "2", "PADDLE_TRAINER_ID": "1", "PADDLE_TRAINERS": "10.0.0.8,10.0.0.9"},
            "--master 10.0.0.8:36677 --nnodes 2 --rank 1",
        ),
    ],
)  # fmt: skip
def test_machines_are_found_by_the_variables_of_each_platform(bench, variables, words):
    tool(
        bench.tools,
        "scontrol",
        "#!/bin/sh\n[ \"$1 $2 $3\" = 'show hostnames node[07-08]' ] && printf 'node07\\nnode08\\n'\n",
    )
    tool(bench.tools, "hostname", '#!/bin/sh\necho "$HOST"\n')
    check, run = bench.dry(**variables)
    assert words in run
    master, _, rest = words.removeprefix("--master ").partition(" ")
    assert check.endswith(f"--master {master} --rank {rest.split()[-1]}")


@pytest.mark.parametrize(
    ("variables", "cards"),
    [
        ({"CARDS": "2"}, "0,1"),
        ({"CARDS": "08"}, "0,1,2,3,4,5,6,7"),
        ({"ASCEND_RT_VISIBLE_DEVICES": "4,5,6"}, "0,1,2"),
        ({"MA_NUM_GPUS": "4"}, "0,1,2,3"),
        ({"MA_NUM_GPUS": "09", "CARDS": "1"}, "0"),
    ],
)
def test_cards_are_counted_within_what_is_visible(bench, variables, cards):
    assert f"--devices {cards} " in bench.dry(**variables)[1]


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NNODES": "2", "NODE_RANK": "0"}, "no address of machine 0: set MASTER_ADDR"),
        (
            {"NODE_RANK": "1", "MASTER_ADDR": "h"},
            "NODE_RANK=1, but nothing says how many machines there are: set NNODES",
        ),
        ({"NNODES": "2", "MASTER_ADDR": "h"}, "set NODE_RANK, on each machine another number from 0 to 1"),
        ({"VC_WORKER_HOSTS": "a,b"}, "set VC_TASK_INDEX, on each"),
        ({"PADDLE_TRAINERS_NUM": "2", "MASTER_IP": "10.0.0.1"}, "set PADDLE_TRAINER_ID, on each"),
        ({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "WORKS": "1"}, "set SLURM_NODEID, on each"),
        ({"NNODES": "2", "NODE_RANK": "one", "MASTER_ADDR": "h"}, "NODE_RANK=one: expected a number from 0"),
        ({"NNODES": "0"}, "NNODES=0: expected a number of machines from 1"),
        (
            {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "fd00::1"},
            "MASTER_ADDR=fd00::1: expected a name or an IPv4",
        ),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "10.0.0.1:4000"}, "without a port"),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "70000"}, "a port from 1 to 65535"),
        ({"MA_NUM_GPUS": "eight"}, "MA_NUM_GPUS=eight: expected a number of cards"),
        (
            {"VC_MASTER_HOSTS": "m.j", "VC_WORKER_HOSTS": "w.j", "VC_TASK_INDEX": "0", "HOST": "other"},
            "this machine, other, is none of m.j,w.j",
        ),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "h"}, "NODE_RANK=2, but there are 2 machines"),
        ({"NNODES": "two"}, "NNODES=two: expected a number"),
        ({"VC_WORKER_HOSTS": "a,b", "MA_NUM_HOSTS": "3"}, "MA_NUM_HOSTS=3, but VC_WORKER_HOSTS holds 2 hosts"),
        ({"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2"}, "scontrol show hostnames n[1-2] failed"),
        (
            {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"},
            "one task for each machine",
        ),
    ],
)
def test_contradictions_end_with_2_and_the_remedy(bench, variables, words):
    works = "SLURM_NTASKS_PER_NODE" in variables or "WORKS" in variables
    tool(bench.tools, "hostname", '#!/bin/sh\necho "$HOST"\n')
    tool(bench.tools, "scontrol", "#!/bin/sh\necho n1\n" if works else "#!/bin/sh\nexit 1\n")
    done = bench.start("launch.sh", "c.json", DRY_RUN="1", **variables)
    assert done.returncode == 2
    assert words in done.stderr


@pytest.mark.usefixtures("usual_signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_the_ranks_and_the_code_75_comes_back(bench, tmp_path, number):
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    (tmp_path / "rank.py").write_text(FAKE_RANK)
    with launched(bench, tmp_path, PYTHON=python, RANK="0") as running:
        if number == signal.SIGUSR1:  # as Slurm does: to every process of the step
            os.killpg(running.pid, number)
        else:  # as Kubernetes does: to process 1 of the container
            running.send_signal(number)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 75, said


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_while_the_other_machines_are_awaited_ends_the_wait(bench, tmp_path):
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    with launched(bench, tmp_path, PYTHON=python, WAITS="1") as running:
        time.sleep(0.1)  # the shell of the fake becomes sleep
        running.terminate()
        running.communicate(timeout=60)
    assert running.returncode == 75


LATE_RANK = """
import pathlib, signal, sys, time
(pathlib.Path.home() / "ready").touch()
time.sleep(1.5)  # as long as Python and the settings take; SIGUSR1 is ignored until then
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(75))
time.sleep(30)
sys.exit(9)
"""


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_before_a_rank_has_its_handler_is_not_lost(bench, tmp_path):
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    (tmp_path / "rank.py").write_text(LATE_RANK)
    with launched(bench, tmp_path, PYTHON=python, RANK="0") as running:
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert running.returncode == 75, said


@pytest.mark.usefixtures("usual_signals")
def test_a_signal_during_the_check_before_the_start_ends_it_and_starts_nothing(bench, tmp_path):
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    with launched(bench, tmp_path, PYTHON=python, RANK="0", SLOW_DOCTOR="1") as running:
        running.terminate()
        _, said = running.communicate(timeout=60)
    assert (running.returncode, "signal before the start" in said) == (75, True), said
    assert [line for line in (tmp_path / "calls").read_text().splitlines() if "doctor.py" not in line] == []


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"NNODES": "2", "MASTER_ADDR": "h"}, "NODE_RANK=: set it to the number of this machine, from 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "h"}, "NODE_RANK=2, but there are 2 machines"),
        ({"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "fd00::1"}, "paddle's launcher takes no IPv6"),
        ({"NODE_RANK": "1", "MASTER_ADDR": "h"}, "NODE_RANK=1, but there is 1 machine: set NNODES"),
        ({"NNODES": "two"}, "NNODES=two: expected a number"),
    ],
)
def test_the_plain_start_refuses_the_same(bench, variables, words):
    done = subprocess.run(
        ["sh", str(ROOT / "paddlemix/tools/train.sh"), "c.json"], env=bench.environment(DRY_RUN="1", **variables),
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert (done.returncode, words in done.stderr) == (2, True), done.stderr


ONLY_IPV6 = """
import socket
def none(name): raise socket.gaierror(-5, "No address associated with hostname")
def six(name, port, family=0, *_, **__): return [(socket.AF_INET6, 1, 6, "", ("fd00::7", 0, 0, 0))]
socket.gethostbyname, socket.getaddrinfo = none, six
"""


def test_a_machine_0_with_ipv6_only_is_told_as_that(bench, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(ONLY_IPV6)
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    done = bench.start(
        "launch.sh", "c.json", PYTHON=python, NNODES="2", NODE_RANK="1", MASTER_ADDR="six", NAME_SECONDS="0",
        PYTHONPATH=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 2
    assert "MASTER_ADDR=six: its only address is fd00::7, and paddle's launcher takes no IPv6" in done.stderr


def test_several_machines_meet_by_number_and_keep_their_logs_apart(bench, tmp_path):
    # Paddle's launcher compares the address of machine 0 as text with its own: a name would make all wait for ever.
    python = str(tool(bench.tools, "fake", FAKE_PYTHON))
    done = bench.start("launch.sh", "c.json", PYTHON=python, NNODES="2", NODE_RANK="0", MASTER_ADDR="localhost")
    assert done.returncode == 3, done.stderr
    call = (tmp_path / "calls").read_text().splitlines()[-1]
    address = re.search(r"--master (\d+\.\d+\.\d+\.\d+):36677 ", call)[1]
    assert f"POD_IP={address}\n" in (tmp_path / "seen").read_text()
    assert "--log_dir ./log/machine0 " in call
