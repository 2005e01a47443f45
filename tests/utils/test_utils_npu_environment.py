# SPDX-License-Identifier: Apache-2.0
"""The variables of an Ascend machine, in made-up environments."""

import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from paddlemix.utils import device, env, npu_environment
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.npu_environment import RECOMMENDED, differences, problems, unknown_flags

ROOT = Path(__file__).resolve().parents[2]
ENV_SH = ROOT / "config" / "npu" / "env.sh"
CANN = {"ASCEND_OPP_PATH": "/opp"}


def texts(variables, cards=8, interfaces=("lo", "eth0")):
    return [problem.text for problem in problems({**CANN, **variables}.get, cards=cards, interfaces=interfaces)]


def test_the_recommended_values_have_no_problem():
    assert texts(RECOMMENDED | {"ASCEND_RT_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "HCCL_SOCKET_IFNAME": "=eth0"}) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ASCEND_RT_VISIBLE_DEVICES", "8", "card 8 is not there; this machine has 8 cards, numbered 0 to 7"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0, 1", "commas and no spaces"),
        ("ASCEND_RT_VISIBLE_DEVICES", "", "commas and no spaces"),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,-1", "commas and no spaces"),
        ("ASCEND_RT_VISIBLE_DEVICES", "3,2", "rising numbers, each once"),
        ("ASCEND_RT_VISIBLE_DEVICES", "1,1", "rising numbers, each once"),
        ("FLAGS_npu_jit_compile", "on", "would silently mean off; write 1 or 0"),
        ("FLAGS_npu_jit_compile", "", "an empty value means on for the plug-in; write 1 or 0"),
        ("FLAGS_use_stride_kernel", "", "ignores all else, so the default would stay"),
        ("FLAGS_use_stride_kernel", "no", "ignores all else, so the default would stay"),
        ("FLAGS_allocator_strategy", "auto_grow", 'did you mean "auto_growth"?'),
        ("CUSTOM_DEVICE_BLACK_LIST", "set_value, pad3d", "commas and no spaces"),
        ("CUSTOM_DEVICE_ROOT", "/no/such/folder", "no such folder"),
        ("HCCL_CONNECT_TIMEOUT", "60", "whole number of seconds from 120 to 7200"),
        ("HCCL_EXEC_TIMEOUT", "-1", "whole number of seconds from 0 to 2147483647"),
        ("PADDLE_XCCL_BACKEND", "gpu", "would look for devices of this kind; write npu"),
        ("PADDLE_XCCL_BACKEND", "", "write npu"),
        ("HCCL_IF_IP", "node-1", "IP address of this machine, not a name"),
        ("HCCL_SOCKET_IFNAME", "=eth1", "no network interface eth1; this machine has lo, eth0"),
        ("HCCL_INTRA_PCIE_EHABLE", "0", "HCCL_INTRA_PCIE_ENABLE is the name"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value_and_the_remedy(name, value, words):
    found = texts({name: value})
    assert len(found) == 1
    assert found[0].startswith(name)
    assert words in found[0]


def test_without_known_cards_any_card_number_is_accepted():
    assert texts({"ASCEND_RT_VISIBLE_DEVICES": "8"}, cards=0) == []


@pytest.mark.parametrize("value", ["eth", "^docker", "=eth0", "lo,eth0"])
def test_the_ways_to_name_an_interface_are_accepted(value):
    assert texts({"HCCL_SOCKET_IFNAME": value}) == []


@pytest.mark.parametrize("value", ["0", "36000"])
def test_long_waits_between_ranks_are_accepted(value):
    assert texts({"HCCL_EXEC_TIMEOUT": value}) == []


def test_missing_paths_of_cann_are_told_on_a_machine_with_cards_only():
    assert "source CANN's set_env.sh" in problems({}.get, cards=8)[0].text
    assert problems({}.get, cards=0) == []


def test_a_misspelt_flag_of_the_plugin_is_told_with_the_nearest_name():
    found = unknown_flags(["FLAGS_npu_jit_complie", "FLAGS_npu_jit_compile", "FLAGS_other"])
    assert [problem.variable for problem in found] == ["FLAGS_npu_jit_complie"]
    assert 'did you mean "FLAGS_npu_jit_compile"?' in found[0].text


def test_differences_compare_switches_by_what_they_mean():
    assert differences(RECOMMENDED.get) == {}
    same = RECOMMENDED | {"FLAGS_npu_scale_aclnn": "1", "FLAGS_npu_jit_compile": "False"}
    assert differences(same.get) == {}
    changed = RECOMMENDED | {"FLAGS_npu_jit_compile": "1"}
    assert differences(changed.get) == {"FLAGS_npu_jit_compile": ("1", "0")}
    assert set(differences({}.get)) == set(RECOMMENDED)


def test_an_empty_flag_of_the_plugin_is_on_and_paddle_ignores_one_of_its_own():
    empty = RECOMMENDED | dict.fromkeys(
        ("FLAGS_npu_jit_compile", "FLAGS_npu_scale_aclnn", "FLAGS_use_stride_kernel"), ""
    )
    assert set(differences(empty.get)) == {"FLAGS_npu_jit_compile", "FLAGS_use_stride_kernel"}


@pytest.mark.parametrize("value", ["", "FALSE", "no"])
def test_a_switch_of_paddle_is_read_here_as_paddle_reads_it(value):
    code = "import paddle; print(paddle.get_flags('FLAGS_use_stride_kernel')['FLAGS_use_stride_kernel'])"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], env=os.environ | {"FLAGS_use_stride_kernel": value},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    read = npu_environment.is_on("FLAGS_use_stride_kernel", value)
    assert done.stdout.strip() == str(True if read is None else read)  # the default is True


def test_cards_are_counted_by_the_device_files_of_the_driver(tmp_path):
    for name in ("davinci0", "davinci1", "davinci_manager", "devmm_svm"):
        (tmp_path / name).touch()
    assert npu_environment.count_cards(tmp_path) == 2
    assert npu_environment.count_cards(tmp_path / "missing") == 0


def test_a_wrong_variable_stops_a_command_that_is_told_to_use_an_npu(monkeypatch):
    monkeypatch.setenv("FLAGS_npu_jit_compile", "off")
    with pytest.raises(ConfigError, match='environment variable FLAGS_npu_jit_compile="off": only values'):
        device.before_paddle("npu")
    assert device.before_paddle("cpu") == []


def test_on_a_machine_with_cards_no_device_means_the_npu(monkeypatch):
    monkeypatch.setattr(npu_environment, "count_cards", lambda: 8)
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "8")
    with pytest.raises(ConfigError, match="card 8 is not there"):
        device.before_paddle(None)
    assert device.before_paddle("cpu") == []


def test_missing_flags_are_named_in_one_line_when_they_are_set(monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO, logger="paddlemix.utils.device")  # a chat may have made it quiet
    for name in RECOMMENDED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(env, "set_default", lambda name, value: name != "FLAGS_use_stride_kernel")
    monkeypatch.delitem(sys.modules, "paddle", raising=False)
    device.before_paddle("npu:0")
    line = capsys.readouterr().err
    assert "FLAGS_npu_jit_compile=0" in line
    assert "FLAGS_use_stride_kernel" not in line


def run(command, **variables):
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        ["bash", "-euc", command], cwd=ROOT, env=kept | variables, capture_output=True, text=True, timeout=60
    )


def sourced(**variables):
    done = run(". config/npu/env.sh; env", **variables)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)


def test_env_sh_sets_exactly_the_recommended_values():
    found = sourced()
    assert {name: found.get(name) for name in RECOMMENDED} == RECOMMENDED
    assert problems(found.get, cards=0) == []


def test_env_sh_keeps_what_the_user_has_set():
    assert sourced(FLAGS_npu_jit_compile="1")["FLAGS_npu_jit_compile"] == "1"


def test_env_sh_takes_the_presets_of_the_image_for_nobodys_choice():
    found = sourced(**npu_environment.IMAGE_PRESETS)
    plain = sourced()
    assert {name: found[name] for name in npu_environment.IMAGE_PRESETS} == {
        name: plain[name] for name in npu_environment.IMAGE_PRESETS
    }
    assert differences(found.get) == {}
    kept = sourced(**npu_environment.IMAGE_PRESETS, KEEP_IMAGE_PRESETS="1")
    assert {name: kept[name] for name in npu_environment.IMAGE_PRESETS} == npu_environment.IMAGE_PRESETS
    said = run(". config/npu/env.sh", **npu_environment.IMAGE_PRESETS).stderr
    assert all(f"{name}={value}" in said for name, value in npu_environment.IMAGE_PRESETS.items())


def test_env_sh_sources_the_toolkit_once_also_under_set_u(tmp_path):
    toolkit = tmp_path / "set_env.sh"
    toolkit.write_text("export LD_LIBRARY_PATH=/cann/lib:$LD_LIBRARY_PATH ASCEND_OPP_PATH=/cann/opp\n")
    found = sourced(ASCEND_SET_ENV=str(toolkit))
    assert found["ASCEND_OPP_PATH"] == "/cann/opp"
    assert found["LD_LIBRARY_PATH"].startswith("/cann/lib")
    again = sourced(ASCEND_SET_ENV=str(toolkit), ASCEND_OPP_PATH="/other")
    assert again["ASCEND_OPP_PATH"] == "/other"


@pytest.mark.parametrize("name", ["npu", "gpu"])
def test_every_variable_of_an_env_sh_is_explained_and_overridable(name):
    text = (ROOT / "config" / name / "env.sh").read_text(encoding="utf-8")
    lines = text.splitlines()
    exports = [i for i, line in enumerate(lines) if re.match(r"export [A-Z]\w+=", line, re.IGNORECASE)]
    assert len(exports) >= 4
    for i in exports:
        variable = re.match(r"export (\w+)=", lines[i]).group(1)
        assert f'"${{{variable}:-' in lines[i], f"{variable} cannot be overridden"
        before = lines[i - 1]
        assert before.startswith(("#", "export")), f"{variable} is not explained"


def test_every_explained_variable_that_is_checked_stands_in_env_sh():
    text = ENV_SH.read_text(encoding="utf-8")
    for name in ("ASCEND_RT_VISIBLE_DEVICES", "HCCL_SOCKET_IFNAME", "HCCL_IF_IP", "HCCL_CONNECT_TIMEOUT"):
        assert name in text


@pytest.mark.skipif(shutil.which("dash") is None, reason="no dash here")
def test_env_sh_can_be_read_by_a_plain_sh():
    done = subprocess.run(
        ["dash", "-euc", ". ./config/npu/env.sh; . ./config/gpu/env.sh"], cwd=ROOT, capture_output=True
    )
    assert done.returncode == 0, done.stderr
