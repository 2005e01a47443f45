# SPDX-License-Identifier: Apache-2.0
"""Devices, dtypes, tuning, logs and entry points."""

import logging
import os
import platform
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from paddlemix.utils import device, entry_point, env
from paddlemix.utils.entry_point import run_command
from paddlemix.utils.errors import BackendError, ConfigError, DataError, TrainingError
from paddlemix.utils.logging import get_logger, redirect_library_logs

ROOT = Path(__file__).resolve().parents[2]


def test_a_cpu_computes_in_float32_and_says_why():
    chosen = device.choose("cpu")
    assert (chosen.name, chosen.kind, chosen.dtype) == ("cpu", "cpu", "float32")
    assert "as asked" in chosen.reason


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_a_cpu_becomes_float32_with_one_warning(dtype, capsys):
    assert device.choose("cpu", dtype).dtype == "float32"
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert dtype in lines[0]


@pytest.mark.parametrize(
    ("name", "text"), [("npuu", "expected cpu, gpu"), ("gpu:x", "gpu:N"), ("cpu:1", "expected cpu")]
)
def test_an_unknown_device_is_told_with_the_choices(name, text):
    with pytest.raises(ConfigError, match=text):
        device.choose(name)


@pytest.mark.skipif(device._trim() is None, reason="another C library")
def test_freed_memory_goes_back_to_the_system():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    device.tune_cpu()  # malloc keeps what is freed from here on
    blocks = [bytearray(1 << 20) for _ in range(64)]
    kept = blocks[1::2]  # between holes
    before = resident()
    del blocks
    device.give_memory_back()
    assert resident() < before - (16 << 20)
    assert len(kept) == 32


def test_an_unknown_dtype_is_told_with_the_choices():
    with pytest.raises(ConfigError, match='dtype "int8": expected one of float32'):
        device.choose("cpu", "int8")


def test_a_gpu_on_a_cpu_build_is_told_in_plain_words(monkeypatch):
    paddle = pytest.importorskip("paddle")
    monkeypatch.setattr(paddle.device, "is_compiled_with_cuda", lambda: False)
    with pytest.raises(BackendError, match="device gpu: the installed paddle is the CPU build"):
        device.choose("gpu")


@pytest.mark.parametrize(
    ("python", "words"), [("3.10.9", ""), ("3.11.7", "Python 3.10 and paddle 3.0.0 at most; this")]
)
def test_a_missing_npu_is_told_with_the_custom_devices_and_the_python_of_its_wheels(monkeypatch, python, words):
    monkeypatch.setattr(device, "_custom_devices", list)
    monkeypatch.setattr(platform, "python_version_tuple", lambda: tuple(python.split(".")))
    with pytest.raises(BackendError, match=r"device npu: no npu device; custom devices: \[\]") as told:
        device.choose("npu")
    assert words in str(told.value)
    assert ("wheels" in str(told.value)) == bool(words)


def test_the_first_of_npu_gpu_cpu_is_taken(monkeypatch):
    monkeypatch.setattr(device, "_npu_count", lambda: 2)
    monkeypatch.setattr(device, "_gpu_count", lambda: 1)
    assert (device.choose().name, device.choose().dtype) == ("npu", "bfloat16")
    assert device.choose("npu:1", "float16").dtype == "float16"
    with pytest.raises(BackendError, match="the 2 npu devices are npu:0 to npu:1"):
        device.choose("npu:2")


@pytest.mark.parametrize(
    ("vendor", "flags", "value"),
    [
        ("AuthenticAMD", "sse2 avx2 avx512f", "7"),
        ("AuthenticAMD", "sse2 avx2", "5"),
        ("AuthenticAMD", "sse2", None),
        ("GenuineIntel", "avx2 avx512f", None),
    ],
)
def test_the_matrix_path_follows_the_processor(vendor, flags, value):
    cpuinfo = f"processor\t: 0\nvendor_id\t: {vendor}\nflags\t\t: fpu {flags}\n"
    assert device.mkl_cpu_type(cpuinfo) == value


def _python(code: str, **variables: str) -> subprocess.CompletedProcess:
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("FLAGS_", "MKL_", "PADDLEMIX_"))}
    environment = keep | {"PYTHONPATH": str(ROOT)} | variables
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)


_TUNE = "import os; from paddlemix.utils import device; device.tune_cpu(); device.tune_cpu(); print(os.environ.get('FLAGS_use_stride_kernel'))"  # noqa: E501


def test_tuning_is_logged_in_one_line_and_can_be_switched_off():
    tuned = _python(_TUNE)
    assert tuned.stdout.strip() == "0"
    assert tuned.stderr.count("cpu tuning:") == 1
    assert _python(_TUNE, PADDLEMIX_CPU_TUNING="0").stdout.strip() == "None"


def test_tuning_leaves_what_the_user_has_set():
    assert _python(_TUNE, FLAGS_use_stride_kernel="1").stdout.strip() == "1"


_HEAP = """
import ctypes, sys
from paddlemix.utils import device
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)

def in_heap():
    place = libc.malloc(2 << 20)
    spans = [line.split()[0].split("-") for line in open("/proc/self/maps") if "[heap]" in line]
    return any(int(first, 16) <= place < int(last, 16) for first, last in spans)

device.tune_cpu()
before = in_heap()
with device.lasting_blocks():
    within = in_heap()
print(before, within, in_heap())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc is tuned")
def test_what_lasts_lies_outside_the_heap_and_what_follows_in_it():
    assert _python(_HEAP).stdout.split() == ["True", "False", "True"]
    assert _python(_HEAP, PADDLEMIX_CPU_TUNING="0").stdout.split() == ["False"] * 3, "the process is left alone"


_PIECES = """
import ctypes
from paddlemix.utils import device
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.mallopt(-3, 1 << 30)
taken = [libc.malloc(240) for _ in range(100_000)]  # what the interpreter has left free
device.tune_training()
device.tune_training()

def block():
    place = ctypes.c_void_p()
    libc.posix_memalign(ctypes.byref(place), 4096, 4 << 20)
    return place

reused = 0
for _ in range(20):
    first, small = block(), [libc.malloc(240) for _ in range(40)]
    second, more = block(), [libc.malloc(240) for _ in range(40)]
    libc.free(first)
    reused += block().value == first.value
print(reused)
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="glibc's malloc is tuned")
def test_small_objects_leave_the_place_of_a_block_to_the_next_one_of_its_size():
    assert int(_python(_PIECES).stdout) >= 15
    assert int(_python(_PIECES, PADDLEMIX_CPU_TUNING="0").stdout) <= 5


def test_npu_flags_are_set_before_paddle_and_for_an_npu_only():
    code = "from paddlemix.utils.device import before_paddle as b; print(len(b('cpu')), len(b('npu:0')))"
    assert _python(code).stdout.split() == ["0", str(len(device.NPU_FLAGS))]
    late = "import sys; sys.modules['paddle'] = sys\nfrom paddlemix.utils.device import before_paddle\n"
    late += "print(before_paddle('npu')[0])"
    assert "source config/npu/env.sh" in _python(late).stdout


def test_the_profile_of_npu_machines_sets_the_same_flags():
    text = (ROOT / "config" / "npu" / "env.sh").read_text(encoding="utf-8")
    for name, value in device.NPU_FLAGS.items():
        assert f'export {name}="${{{name}:-{value}}}"' in text


def test_importing_the_utilities_imports_nothing_heavy():
    code = (
        "import sys; from paddlemix.utils import device, entry_point, files\n"
        "print([name for name in ('paddle', 'paddlenlp', 'numpy', 'requests') if name in sys.modules])"
    )
    assert _python(code).stdout.strip() == "[]"


@pytest.mark.parametrize(("error", "code"), [(DataError("a.json, record 3: bad"), 2), (TrainingError("disk"), 1)])
def test_a_command_tells_an_error_in_one_line(error, code, capsys):
    def main(argv):
        raise error

    assert run_command(main, []) == code
    assert capsys.readouterr().err == f"error: {error}\n"


def test_debug_adds_the_traceback(capsys):
    def main(argv):
        raise DataError("bad")

    run_command(main, ["--debug"])
    assert "Traceback" in capsys.readouterr().err


def test_a_command_ends_with_130_after_an_interrupt(capsys):
    def main(argv):
        raise KeyboardInterrupt

    assert run_command(main, []) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 // 0, [])


def test_a_fault_while_operators_of_a_plug_in_are_in_use_is_told_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setattr(entry_point, "IN_USE", ["what an earlier command used"])

    def main(argv):
        entry_point.IN_USE.append("fused operators were in use")
        raise OSError("judged in the backward pass")

    assert run_command(main, []) == 1
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.endswith("\nnote: fused operators were in use\n")
    assert "earlier" not in told
    with pytest.raises(ZeroDivisionError):
        run_command(lambda argv: 1 // 0, [])


def test_garbage_in_a_flag_stops_before_the_command(monkeypatch, capsys):
    monkeypatch.setenv("PADDLEMIX_ATTENTION", "maybe")
    assert run_command(lambda argv: pytest.fail("was run"), []) == 2
    told = capsys.readouterr().err
    assert 'PADDLEMIX_ATTENTION="maybe": expected one of auto, math, sdpa, npu' in told


def test_every_flag_has_a_meaning_and_a_default_that_it_accepts():
    for name, flag in env.FLAGS.items():
        assert flag.meaning
        assert not flag.choices or flag.default in flag.choices, name


def test_library_logs_go_to_the_file_and_ours_do_not(tmp_path, capsys):
    library = logging.getLogger("paddle.test_of_logs")
    library.addHandler(logging.StreamHandler(sys.stdout))
    redirect_library_logs(tmp_path / "logs" / "library.log")
    redirect_library_logs(tmp_path / "logs" / "library.log")
    library.warning("120 lines of settings")
    get_logger("paddlemix.test").warning("for the person")
    shown = capsys.readouterr()
    assert "settings" not in shown.out + shown.err
    assert shown.err == "warning: for the person\n"
    assert (tmp_path / "logs" / "library.log").read_text().count("120 lines of settings") == 1


def test_the_launcher_puts_machines_devices_and_settings_in_one_command():
    script = ROOT / "paddlemix" / "tools" / "train.sh"
    variables = {"DRY_RUN": "1", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "host", "DEVICES": "0,1"}
    variables["PATH"] = os.environ["PATH"]
    command = ["sh", script, "c.json", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    assert "--master host:36677 --nnodes 2 --rank 1 --devices 0,1" in done.stdout
    assert done.stdout.strip().endswith("supervised_finetune.py c.json --seed 3")


def test_the_launcher_refuses_several_machines_without_an_address():
    script = ROOT / "paddlemix" / "tools" / "train.sh"
    variables = {"PATH": os.environ["PATH"], "NNODES": "2", "DRY_RUN": "1"}
    done = subprocess.run(["sh", script, "c.json"], capture_output=True, text=True, env=variables)
    assert done.returncode == 2
    assert "MASTER_ADDR" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "config", "cards", "given", "backend"),
    [
        (["--device", "npu"], "{}", False, None, "npu"),
        (["--seed", "3", "--device=npu:1"], "{}", False, None, "npu"),
        ([], '{"seed": 3, "device": "npu", "bf16": true}', False, None, "npu"),
        ([], '{"device": null}', True, None, "npu"),
        ([], None, True, None, "npu"),
        ([], "{}", False, None, None),
        ([], "{}", False, "npu", "npu"),
        (["--device", "cpu"], '{"device": "npu"}', True, "npu", None),
        (["--device", "gpu"], "{}", True, "npu", None),
        ([], '{"device": "cpu"}', True, "npu", None),
    ],
)
def test_the_launcher_of_paddle_is_given_the_kind_of_the_device(tmp_path, arguments, config, cards, given, backend):
    path = tmp_path / "c.json"
    if config is not None:
        path.write_text(config, encoding="utf-8")
    if cards:
        (tmp_path / "davinci0").touch()
    (tmp_path / "davinci_manager").touch()
    variables = {"PATH": os.environ["PATH"], "DRY_RUN": "1", "DEV_FOLDER": str(tmp_path)}
    variables |= {} if given is None else {"PADDLE_XCCL_BACKEND": given}
    command = ["sh", ROOT / "paddlemix" / "tools" / "train.sh", path, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables)
    named = [word for word in done.stdout.split() if word.startswith("PADDLE_XCCL_BACKEND")]
    assert named == ([] if backend is None else [f"PADDLE_XCCL_BACKEND={backend}"])


def test_what_paddle_says_of_a_compiler_cache_at_import_is_not_shown():
    def main(argv):
        warnings.warn("No ccache found. Please be aware", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run_command(main, []) == 0
    assert [str(one.message) for one in said] == ["something else"]
