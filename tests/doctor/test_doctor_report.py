# SPDX-License-Identifier: Apache-2.0
"""The report on a device: made-up machines, this machine's CPU, and the stand-in npu."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.doctor import findings, imports, machine, report, versions
from paddlemix.doctor.machine import card_findings
from paddlemix.doctor.report import Report, Wanted, examine
from paddlemix.tools import doctor
from paddlemix.utils import npu_cards, npu_environment
from paddlemix.utils.install import install_line
from paddlemix.utils.npu_cards import Card, Cards, parse_cards
from tests.npu_standin import build

ROOT = Path(__file__).resolve().parents[2]

SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 23.0.3                   Version: 23.0.3                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B3               | OK            | 93.6        49                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3344 / 65536         |
+===========================+===============+====================================================+
| 1     910B3               | Alarm         | 90.2        48                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          40000/ 65536         |
+===========================+===============+====================================================+
+---------------------------+---------------+----------------------------------------------------+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| No running processes found in NPU 0                                                            |
| 1       0                 | 4711          | python                   | 36600                   |
+===========================+===============+====================================================+
"""


@pytest.fixture(autouse=True)
def launcher_variable(monkeypatch):
    """A command that is told to use an npu sets it for its process; the tests that start processes must not see it."""
    monkeypatch.setenv(npu_environment.LAUNCHER, "")
    monkeypatch.delenv(npu_environment.LAUNCHER)


def states(findings):
    return {finding.name: finding.state for finding in findings}


def test_the_table_of_npu_smi_is_read_with_health_and_memory():
    told = parse_cards(SMI)
    assert told.driver == "23.0.3"
    assert told.cards == (Card(0, "910B3", "OK", 3344, 65536), Card(1, "910B3", "Alarm", 40000, 65536))
    assert told.problem is None


def test_an_empty_table_of_npu_smi_is_a_problem():
    assert parse_cards("+---+\n").problem == "npu-smi info shows no card"


def test_a_card_that_is_sick_missing_or_in_use_stops_the_start():
    told = parse_cards(SMI)
    found = card_findings(told, idle=True)
    assert "2 x 910B3, 64 GB each" in found[0].text
    assert [finding.name for finding in found if finding.state == "FAIL"] == ["health", "memory"]
    assert "card 1 is Alarm" in found[1].text
    assert "40000 of 65536 MB" in found[2].text
    assert states(card_findings(told, wanted=8)) == {"cards": "FAIL"}
    healthy = Cards((told.cards[0],) * 2, "23.0.3")
    assert states(card_findings(healthy, wanted=2, idle=True)) == {"cards": "ok"}


def test_cards_of_others_on_the_machine_do_not_stop_the_start(monkeypatch):
    told = parse_cards(SMI)  # card 1 is sick and in use
    assert states(card_findings(told, wanted=1, idle=True)) == {"cards": "ok"}
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "0")
    assert states(card_findings(told, idle=True)) == {"cards": "ok"}
    assert states(card_findings(told, wanted=2)) == {"cards": "FAIL"}
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "1")
    assert states(card_findings(told, wanted=1, idle=True)) == {"cards": "ok", "health": "FAIL", "memory": "FAIL"}


def test_npu_smi_that_fails_is_quoted(tmp_path, monkeypatch):
    tool = tmp_path / "npu-smi"
    tool.write_text("#!/bin/sh\necho 'dcmi module initialize failed. ret is -8005' >&2\nexit 255\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert npu_cards.read_cards().problem == "npu-smi info ended with 255: dcmi module initialize failed. ret is -8005"


def test_driver_and_cann_are_read_from_their_files(tmp_path, monkeypatch):
    for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH"):
        monkeypatch.delenv(name, raising=False)
    driver = tmp_path / "usr/local/Ascend/driver/version.info"
    cann = tmp_path / "usr/local/Ascend/ascend-toolkit/latest/aarch64-linux/ascend_toolkit_install.info"
    for path, text in ((driver, "Version=23.0.3\n"), (cann, "package_name=Ascend-cann-toolkit\nversion=8.0.RC1\n")):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert (machine.read_driver(tmp_path), machine.read_cann(tmp_path)) == ("23.0.3", "8.0.RC1")
    assert (machine.read_driver(tmp_path / "no"), machine.read_cann(tmp_path / "no")) == (None, None)


@pytest.mark.parametrize(
    ("versions_found", "state", "words"),
    [
        ({"driver": "23.0.3", "cann": "8.0.0", "paddle": "3.0.0", "plugin": "3.0.0"}, "ok", "paddlepaddle.org.cn"),
        ({"driver": "23.0.3", "cann": "8.0.RC1", "paddle": "3.0.0b0", "plugin": "3.0.0b0"}, "ok", "PaddleNLP"),
        ({"cann": "8.0.0", "paddle": "3.0.0rc1", "plugin": "3.0.0rc1"}, "note", "which CANN they want is not said"),
        (
            {"cann": "8.0.0", "paddle": "3.0.0.dev20260115", "plugin": "3.0.0.dev20260115"},
            "note",
            "released together (paddle's package index",
        ),
        ({"cann": "8.0.0", "paddle": "3.2.0", "plugin": "3.2.0"}, "note", "not in the table"),
        ({"driver": "25.0", "cann": "8.0.RC1", "paddle": "3.0.0b0", "plugin": "3.0.0b0"}, "note", "not in the table"),
        ({"cann": "8.0.0", "paddle": "3.3.1", "plugin": "3.0.0"}, "note", "built for paddle 3.0.0, but"),
        ({"cann": None, "paddle": "3.0.0", "plugin": "3.0.0"}, "note", "not in the table"),
        ({"paddle": "3.3.1", "plugin": None}, "note", "not installed"),
    ],
)  # fmt: skip
def test_versions_are_compared_with_published_combinations(versions_found, state, words):
    found = versions.judge(versions_found)
    assert (found.state, words in found.text) == (state, True), found


def test_every_known_combination_has_a_source_with_a_date():
    assert all("(read 20" in known.source and known.plugin for known in versions.KNOWN)
    # What the setup asks for first has to be told in full.
    assert versions.RECOMMENDED.cann
    assert versions.RECOMMENDED.python == "3.10"


@pytest.mark.parametrize(
    ("installed", "words"),
    [("0.19.1", None), ("0.22.2", None), ("1.0.0rc1", None), ("0.15.2", "is 0.15.2"), (None, "is not installed")],
)
def test_tokenizers_that_would_misread_a_vocabulary_are_told(monkeypatch, installed, words):
    monkeypatch.setattr(report, "_installed", lambda name: installed if name == "tokenizers" else "3.0.0")
    told = [finding for finding in report._packages(False) if finding.name == "tokenizers"]
    assert [(finding.state, words in finding.text) for finding in told] == ([("WARN", True)] if words else [])
    assert all('pip install "tokenizers>=0.19"' in finding.text for finding in told)


@pytest.mark.parametrize(
    ("name", "words"),
    [("910B3", None), ("910ProA", "release 2.6"), ("310P3", "trains nothing"), ("Ascend910", "910C"),
     ("910_9391", "910C"), ("950", "is not known here")],
)  # fmt: skip
def test_a_chip_other_than_the_910b_is_told_with_what_is_known(name, words):
    told = card_findings(Cards((Card(0, name, "OK", 3344, 65536),), "23.0.3"), wanted=1)
    found = [finding for finding in told if finding.name == "chip"]
    assert [finding.state for finding in found] == (["note"] if words else [])
    assert not words or f"{name} " in found[0].text
    assert not words or words in found[0].text


def test_the_master_has_to_be_known_and_its_port_free_on_machine_0():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        taken = machine.master_findings(f"127.0.0.1:{port}", 0)[0]
        assert (taken.state, "set MASTER_PORT" in taken.text) == ("FAIL", True)
        assert machine.master_findings(f"127.0.0.1:{port}", 1)[0].state == "ok"
    assert machine.master_findings(f"127.0.0.1:{port}", 0)[0].state == "ok"
    assert "not known here" in machine.master_findings("no-such-host.invalid:36677", 1)[0].text
    assert machine.master_findings("node", 0)[0].text == '"node": expected host:port'


def test_several_interfaces_without_a_choice_are_worth_a_note(monkeypatch):
    monkeypatch.delenv("HCCL_SOCKET_IFNAME", raising=False)
    monkeypatch.delenv("HCCL_IF_IP", raising=False)
    assert machine.network_findings(["lo", "eth0", "docker0"])[0].state == "ok"
    two = machine.network_findings(["lo", "eth0", "eth1"])[0]
    assert (two.state, "HCCL_SOCKET_IFNAME==eth0" in two.text) == ("note", True)


def test_a_cpu_machine_is_ready_and_says_what_it_lacks_for_an_npu():
    report = examine(Wanted(quick=True))
    assert (report.device, report.exit_code) == ("cpu", 0)
    text = "\n".join(report.as_lines())
    for words in ("npu-smi is not on the PATH", "no Ascend driver found", "no CANN toolkit found",
                  "no npu and no gpu that paddle can use", "flash_attention_npu is not registered"):  # fmt: skip
        assert words in text
    assert len(report.as_lines()) <= 40


def test_an_npu_that_was_asked_for_and_is_not_there_is_exit_code_1(capsys):
    assert doctor.main(["--device", "npu", "--quick", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exit_code"] == 1
    failed = {item["name"] for section in told["sections"].values() for item in section if item["state"] == "FAIL"}
    assert failed == {"cards", "plug-in", "device"}


def test_a_wrong_variable_is_exit_code_2_and_named(monkeypatch, capsys):
    monkeypatch.setenv("FLAGS_npu_jit_compile", "on")
    assert doctor.main(["--device", "npu", "--quick"]) == 2
    assert 'FLAGS_npu_jit_compile="on"' in capsys.readouterr().err


def test_a_launcher_that_would_not_know_the_device_is_told():
    def told(*set_here):
        found = examine(Wanted(device="npu", quick=True, set_here=set_here)).sections["variables"]
        return [item.text for item in found if item.name == "launcher"]

    assert "PADDLE_XCCL_BACKEND=npu" in told("FLAGS_npu_jit_compile=0", "PADDLE_XCCL_BACKEND=npu")[0]
    assert told("FLAGS_npu_jit_compile=0") == told() == []


def test_a_preset_of_the_image_is_told_as_one(monkeypatch):
    monkeypatch.setenv("FLAGS_allocator_strategy", "naive_best_fit")
    told = {finding.name: finding for finding in examine(Wanted(device="npu", quick=True)).sections["variables"]}
    assert "a preset of paddle's image; config/npu/env.sh replaces it" in told["FLAGS_allocator_strategy"].text


@pytest.mark.parametrize("flag", ["--cards", "--rank"])
def test_a_number_below_zero_is_exit_code_2(flag, capsys):
    assert doctor.main([flag, "-1"]) == 2
    assert f"{flag} -1: expected a number from 0" in capsys.readouterr().err


def test_the_report_is_one_screen_of_120_columns():
    report = Report("npu", {"machine": [findings.note("cards", "word " * 60), findings.ok("host", "short")]})
    lines = report.as_lines()
    assert max(map(len, lines)) <= 120
    assert lines[0].startswith("machine      note cards:                 word word")
    assert lines[1].startswith(" " * 41 + "word")
    assert " ".join(" ".join(lines).split()).count("word") == 60


def test_a_package_that_cannot_be_imported_is_a_failure_with_a_command_in_one_piece(monkeypatch, tmp_path):
    (tmp_path / "broken_training.py").write_text("raise AttributeError('pyarrow has no attribute PyExtensionType')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(imports, "TRAINING", "broken_training")
    report = examine(Wanted(device="cpu", quick=True))
    assert report.exit_code == 1
    assert [finding.name for finding in report.failures] == ["training"]
    text = report.failures[0].text
    assert "cannot be started: AttributeError: pyarrow has no attribute PyExtensionType" in text
    command = text.partition("\n")[2]
    assert command == install_line()
    assert command in [line.strip() for line in report.as_lines()]
    monkeypatch.setattr(imports, "CHAT", "broken_training")
    assert examine(Wanted(device="cpu", quick=True)).sections["device"][0].state == "FAIL"


def test_the_doctor_imports_what_a_training_imports():
    code = (
        f"import sys, importlib; importlib.import_module('{imports.TRAINING}'); before = set(sys.modules)\n"
        "import paddlemix.trainer.run, paddlemix.trainer.callbacks, paddlenlp.trainer\n"
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('paddlemix')))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


def test_the_report_works_without_paddle():
    code = (
        "import sys, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'paddle' else real(name, *a)\n"
        "from paddlemix.doctor.report import Report, Wanted, examine\n"
        "report = examine(Wanted())\n"
        "print(report.exit_code, report.sections['device'][0].text, 'paddle' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[0] == "1 cannot be looked at without paddle False", done.stderr


def test_what_costs_is_said_in_the_last_line():
    report = Report("npu", {"operators": [findings.warn("a", "costs"), findings.ok("b", "fine")]})
    assert report.as_lines()[-1] == "result       npu is ready, but 1 thing marked WARN cost memory or time"
    assert report.exit_code == 0
    report.sections["operators"].append(findings.fail("c", "broken"))
    assert report.as_lines()[-1] == "result       NOT READY: 1 thing marked FAIL"


def test_a_missing_operator_costs_on_an_npu_and_is_worth_a_note_elsewhere(monkeypatch):
    from paddlemix.doctor import operators

    assert {finding.state for finding in operators.forms(on_npu=False)} == {"note"}
    told = operators.forms(on_npu=True)
    assert [finding.state for finding in told] == ["WARN"] * 4
    costs = {operator.plugin: operator.cost for operator in operators.OPERATORS.values()}
    assert all(costs[finding.name] in finding.text for finding in told)
    assert "fused_mm_allreduce" not in {finding.name for finding in told}, "off unless asked for"
    monkeypatch.setenv("PADDLEMIX_NPU_FUSED_MC2", "auto")
    assert {finding.name: finding.state for finding in operators.forms(on_npu=True)}["fused_mm_allreduce"] == "WARN"
    form = operators.library.KNOWN["fused_rope"][0]
    monkeypatch.setattr(operators.library, "form_of", lambda name: form)
    monkeypatch.setattr(operators.library, "has_gradient", lambda name: name != "rms_norm_npu")
    states = {finding.name: finding.state for finding in operators.forms(on_npu=True)}
    assert states["fused_rope"] == "ok"
    assert states["rms_norm_npu"] == "WARN"
    assert states["fused_mm_allreduce"] == "ok"
    monkeypatch.setenv("PADDLEMIX_NPU_FUSED_ROPE", "0")
    chosen = {finding.name: finding for finding in operators.forms(on_npu=True)}["fused_rope"]
    assert (chosen.state, chosen.text.endswith("PADDLEMIX_NPU_FUSED_ROPE=0")) == ("note", True)


@pytest.mark.parametrize(
    ("flag", "value", "known", "state", "text"),
    [
        (
            "PADDLEMIX_ATTENTION",
            "sdpa",
            True,
            "FAIL",
            "PADDLEMIX_ATTENTION=sdpa: sdpa is not for an npu, so a training",
        ),
        ("PADDLEMIX_ATTENTION", "npu", False, "FAIL", "PADDLEMIX_ATTENTION=npu: the operator cannot be used"),
        ("PADDLEMIX_NPU_FUSED", "1", False, "FAIL", "PADDLEMIX_NPU_FUSED=1: the operator cannot be used"),
        ("PADDLEMIX_ATTENTION", "math", True, "note", "PADDLEMIX_ATTENTION=math"),
        ("PADDLEMIX_ATTENTION", "npu", True, "ok", "PADDLEMIX_ATTENTION=npu"),
    ],
)
def test_a_forced_kernel_that_no_npu_can_use_is_a_fault_and_a_chosen_plain_one_a_note(
    monkeypatch, flag, value, known, state, text
):
    from paddlemix.doctor import operators

    monkeypatch.setenv(flag, value)
    if known:
        monkeypatch.setattr(operators.library, "form_of", lambda name: operators.library.KNOWN[name][0])
        monkeypatch.setattr(operators.library, "has_gradient", lambda name: True)
    found = operators.forms(on_npu=True)[0]
    assert (found.name, found.state) == ("flash_attention_npu", state)
    assert text in found.text


def test_a_master_with_ipv6_only_is_told_as_that(monkeypatch):
    def known(host, port, family=0, kind=0):
        if family == socket.AF_INET:
            raise socket.gaierror(-5, "No address associated with hostname")
        return [(family, kind, 6, "", ("fd00::7", 0, 0, 0))]

    monkeypatch.setattr(machine.socket, "getaddrinfo", known)
    found = machine.master_findings("six:36677", 1)[0]
    assert (found.state, "its only address is fd00::7" in found.text) == ("FAIL", True)


def test_results_are_plain_data():
    json.dumps(examine(Wanted(quick=True)).as_json())
    assert dataclasses.is_dataclass(Wanted)


def on_standin(library, *flags, **variables):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "paddlemix/tools/doctor.py", "--device", "npu", "--json", *flags],
        env=build.environment(library, **variables), cwd=ROOT, capture_output=True, text=True, timeout=110,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def standin():
    if build.missing():
        pytest.skip(build.missing())
    return build.build()


@pytest.mark.npu_standin
@pytest.mark.parametrize(("dtype", "form", "more"), [("bfloat16", "7+6", ()), ("float16", "5+5", ("--preflight",))])
def test_the_self_check_runs_every_fused_operator_on_the_device(standin, dtype, form, more):
    code, told = on_standin(standin, "--dtype", dtype, *more, NPU_STANDIN_ABI=form)
    assert code == 0
    checks = told["sections"]["self-check"]
    assert len(checks) == 8
    assert all(item["state"] == "ok" and item["values"]["max_difference"] > 0 for item in checks)
    forms = {item["name"]: item["values"].get("form") for item in told["sections"]["operators"]}
    assert forms["flash_attention_npu"] == "{} inputs, {} attributes".format(*form.split("+"))
    assert ("speed" in told["sections"]) == (not more)
    if not more:
        speeds = {item["name"]: item["values"] for item in told["sections"]["speed"]}
        assert speeds["matmul"]["tflops"] > 0
        assert speeds["memory"]["gb_per_s"] > 0


@pytest.mark.npu_standin
def test_an_operator_of_an_unknown_form_is_named_and_not_called(standin):
    code, told = on_standin(standin, "--preflight", NPU_STANDIN_ABI="unknown")
    assert code == 0
    line = told["sections"]["operators"][0]
    assert (line["state"], "unknown form" in line["text"]) == ("WARN", True)
    assert "keeps every score in memory" in line["text"]
    attention = [item for item in told["sections"]["self-check"] if item["name"].startswith("attention")]
    assert all(item["state"] == "note" and "not used" in item["text"] for item in attention)


@pytest.mark.npu_standin
def test_eight_cards_that_were_asked_for_and_are_not_there_stop_the_start(standin):
    code, told = on_standin(standin, "--preflight", "--cards", "8")
    assert code == 1
    assert told["sections"]["machine"][1]["state"] == "FAIL"
    assert [item["name"] for item in told["sections"]["device"] if item["state"] == "FAIL"] == ["npu devices"]
    assert len(told["sections"]["self-check"]) == 8, "a start is checked with the operators too"
    assert "speed" not in told["sections"]
