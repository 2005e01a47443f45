# SPDX-License-Identifier: Apache-2.0
"""Which device computes, in which dtype, and why; and what is set on a CPU before the first matrix product."""

import contextlib
import ctypes
import functools
import importlib.util
import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.utils import env, home, install, npu_environment
from paddlemix.utils.dtypes import dtype_named
from paddlemix.utils.errors import BackendError, ConfigError
from paddlemix.utils.logging import get_logger
from paddlemix.utils.options import current

KINDS = ("cpu", "gpu", "npu")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
_tuned_allocator: list[bool] = []

LARGE_GRADIENTS = 64 << 20
"""Bytes from which on the memory of gradients is worth giving back."""

NPU_FLAGS = npu_environment.RECOMMENDED
"""What the Ascend plug-in reads when it loads, that is while paddle is imported (``config/npu/env.sh`` sets them)."""


@dataclass(frozen=True)
class Device:
    """``name`` is what ``paddle.set_device`` takes; ``reason`` is one sentence for the person."""

    name: str
    dtype: str
    reason: str

    @property
    def kind(self) -> str:
        """``cpu``, ``gpu`` or ``npu``."""
        return self.name.split(":")[0]


def before_asking(name: str | None) -> None:
    """``before_paddle`` for a process that answers questions; on the CPU, the default, with ``tune_cpu``."""
    before_paddle(name)
    if (name or "cpu") == "cpu":
        tune_cpu()


def before_paddle(name: str | None = None) -> list[str]:
    """Refuse an old paddle, check the variables of the Ascend plug-in, and set those that ``import paddle`` reads.

    Does nothing more unless ``name`` is an npu device, or None on a machine with Ascend cards. A wrong value is a
    ConfigError that names the variable; one that the user has set is left alone. Returns (and logs) a line for each
    variable set here. When paddle is imported already it is too late: the lines then say which flags are missing, and
    that ``config/npu/env.sh`` sets them. A home folder that cannot be written gives way to a temporary one.
    """
    old = install.old_paddle()
    if old is not None:
        raise ConfigError(old)
    if "paddle" not in sys.modules:
        home.make_usable()
    if not (name or ("npu" if npu_environment.count_cards() else "")).startswith("npu"):
        return []
    _check_npu_variables()
    log = get_logger(__name__)
    if "paddle" in sys.modules:
        missing = [flag for flag in NPU_FLAGS if env.raw(flag) is None]
        lines = [f"{flag} is not set and paddle is loaded already: source config/npu/env.sh first" for flag in missing]
        for line in lines:
            log.warning(line)
        return lines
    lines = [f"{flag}={value}" for flag, value in NPU_FLAGS.items() if env.set_default(flag, value)]
    if lines:
        log.info("set before paddle is loaded, as config/npu/env.sh does: " + " ".join(lines))
    return lines


def _check_npu_variables() -> None:
    found = npu_environment.problems()
    wrong = [problem.text for problem in found if problem.fatal]
    if wrong:
        raise ConfigError("environment variable " + "; environment variable ".join(wrong))
    for problem in (*found, *npu_environment.unknown_flags(env.names("FLAGS_npu_"))):
        get_logger(__name__).warning(problem.text)


def choose(name: str | None = None, dtype: str | None = None) -> Device:
    """The device and the dtype of the computation.

    ``name``: ``cpu``, ``gpu[:N]``, ``npu[:N]``, or None for the first of npu, gpu, cpu that is there.
    ``dtype``: ``float32``, ``float16``, ``bfloat16``, or None for bfloat16 where the device has it, else float16;
    float32 on a CPU. A CPU computes in float32 whatever was asked (paddle has no half-precision matrix product
    there), with one warning line. BackendError when the device is not there.
    """
    dtype = None if dtype is None else dtype_named(dtype)
    if name is None:
        found = _first_present()
        why = f"device {found}: " + ("the first of npu, gpu, cpu that is there" if found != "cpu" else "no npu, no gpu")
    else:
        found, why = _present(name), f"device {name}: as asked"
    kind = found.split(":")[0]
    chosen, dtype_why = _dtype_for(kind, dtype)
    return Device(found, chosen, f"{why}; {chosen}: {dtype_why}")


def _dtype_for(kind: str, wanted: str | None) -> tuple[str, str]:
    if kind == "cpu":
        if wanted not in (None, "float32"):
            get_logger(__name__).warning(
                f"{wanted} was asked for, but a CPU computes in float32 only (no half-precision kernels): using float32"
            )
            return "float32", f"the CPU has no {wanted}"
        return "float32", "the dtype of a CPU"
    if wanted is not None:
        return wanted, "as asked"
    if kind == "npu":
        return "bfloat16", "the Ascend 910B has it"
    import paddle

    if paddle.amp.is_bfloat16_supported():
        return "bfloat16", "the GPU has it"
    return "float16", "the GPU has no bfloat16"


def _first_present() -> str:
    if _npu_count():
        return "npu"
    return "gpu" if _gpu_count() else "cpu"


def _present(name: str) -> str:
    kind, _, index = name.partition(":")
    if kind not in KINDS or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ConfigError(f'device "{name}": expected cpu, gpu, gpu:N, npu or npu:N')
    if kind == "cpu":
        return name
    count = _gpu_count() if kind == "gpu" else _npu_count()
    if not count:
        raise BackendError(_absent_gpu() if kind == "gpu" else _absent_npu(_custom_devices()))
    if index and int(index) >= count:
        there = (
            f"the {count} {kind} devices are {kind}:0 to {kind}:{count - 1}" if count > 1 else f"there is {kind}:0 only"
        )
        raise BackendError(f"device {name}: {there}")
    return name


def require_installed(name: str | None) -> None:
    """BackendError when the installed paddle cannot have the device ``name``: read from its files, before it is loaded.

    Whether a card is there is found by ``choose``.
    """
    if name is None or "paddle" in sys.modules:
        return
    kind, found = name.partition(":")[0], importlib.util.find_spec("paddle")
    if found is None or found.origin is None:
        return  # that paddle is missing is reported by the command
    package = Path(found.origin).parent
    if kind == "gpu" and _is_cpu_build(package / "version" / "__init__.py"):
        raise BackendError(_cpu_build())
    plugins = Path(env.raw("CUSTOM_DEVICE_ROOT") or package.parent / "paddle_custom_device")
    if kind == "npu" and not any(plugins.rglob("*.so*")):
        raise BackendError(_absent_npu([]))


def _is_cpu_build(version: Path) -> bool:
    try:
        text = version.read_text(encoding="utf-8")
    except OSError:
        return False
    numbers = dict(re.findall(r"^(cuda|hip|rocm)_version\s*=\s*(\S+)", text, re.MULTILINE))
    return bool(numbers) and all(value in ("'False'", "None", "False") for value in numbers.values())


def _cpu_build() -> str:
    return (
        "device gpu: the installed paddle is the CPU build; install paddlepaddle-gpu from paddle's own package "
        f"index{_or_cpu()}"
    )


def _absent_gpu() -> str:
    import paddle

    if not paddle.device.is_compiled_with_cuda():
        return _cpu_build()
    return f"device gpu: paddle sees no CUDA device; check nvidia-smi and CUDA_VISIBLE_DEVICES{_or_cpu()}"


def _or_cpu() -> str:
    way = current().device
    return f", or use {way}" if way else ""


def _absent_npu(found: list[str]) -> str:
    python = ".".join(platform.python_version_tuple()[:2])
    wheels = "" if python == "3.10" else f" (it has wheels for Python 3.10 and paddle 3.0.0 at most; this is {python})"
    return (
        f"device npu: no npu device; custom devices: {found or '[]'}; install paddle-custom-npu for this paddle{wheels}"
        ", source config/npu/env.sh, check npu-smi and ASCEND_RT_VISIBLE_DEVICES" + _or_cpu()
    )


def _custom_devices() -> list[str]:
    import paddle

    return list(paddle.device.get_all_custom_device_type() or [])


def _npu_count() -> int:
    import paddle

    if "npu" not in _custom_devices():
        return 0
    return sum(1 for item in paddle.device.get_available_custom_device() if item.split(":")[0] == "npu")


def _gpu_count() -> int:
    import paddle

    return paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0


def tunes_cpu() -> bool:
    """Whether this process may be made faster on a CPU at all (``PADDLEMIX_CPU_TUNING``)."""
    return env.get("PADDLEMIX_CPU_TUNING") != "0"


@functools.cache
def tune_cpu() -> str:
    """Set what makes paddle fast on a CPU, once per process and before the first matrix product.

    Three cures (measured in float32 against the same work in other frameworks): the bundled MKL takes its generic
    path on AMD processors unless ``MKL_DEBUG_CPU_TYPE`` names a better one (2.7 x for matrix products); copies of
    strided views are up to 59 x slower with the stride kernels; freed temporaries go back to the system and fault in
    again unless the allocator's thresholds are raised (2.4 x for attention). The order of sums changes with
    MKL's path, so on AMD only. ``PADDLEMIX_CPU_TUNING=0`` leaves the process alone. Returns and logs one line that
    says what was set and why.
    """
    if not tunes_cpu():
        return "cpu tuning: off (PADDLEMIX_CPU_TUNING=0)"
    done = [part for part in (_tune_mkl(), _tune_strides(), _tune_allocator()) if part]
    line = "cpu tuning: " + ("; ".join(done) or "nothing to set")
    get_logger(__name__).info(line)
    return line


@functools.cache
def tune_training() -> None:
    """Give small objects places of their own in malloc's heap, once per process and before the model is made.

    Paddle asks for blocks at borders of pages, and glibc looks for one in holes that are a page longer. The gap between
    two blocks (4 kB at most) is taken by small objects of the autograd graph: then a block's place fits no block of
    its size any more, and neighbours that are free do not become one. 40 MB in pieces smaller than any gap are filled
    first, so gaps stay free: a step over all weights took 0.4 GB less of 7.1 at its peak, in the same time.
    """
    if not tunes_cpu() or not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    pieces = []
    for _ in range(40_000):
        pieces.append(libc.malloc(1032))  # just beyond the sizes that each thread keeps for itself
        libc.malloc(8)  # stays, so that neighbours do not become one
    for piece in pieces:
        libc.free(piece)


@contextlib.contextmanager
def lasting_blocks() -> Iterator[None]:
    """What is allocated within (weights, moments: they last as long as the run) lies outside malloc's heap.

    There temporaries between them would leave holes that nothing fills. Only where ``tune_cpu`` has set the allocator.
    """
    if not _tuned_allocator:
        yield
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_THRESHOLD, 1 << 20)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)


def give_memory_back() -> None:
    """Give the system what malloc keeps of freed memory (``tune_cpu``): some 10 ms for 100 MB, and as much to get anew.

    For the moments when much was freed that is not needed for a while. Nothing happens with another C library, and with
    ``PADDLEMIX_CPU_TUNING=0``.
    """
    trim = _trim()
    if trim is not None and tunes_cpu():
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None


def tune_graphs() -> None:
    """Let static graphs free what they no longer need by the 10 MB, once per process and before the first graph.

    By default a second thread frees each tensor at once, which takes half as long as the operators of a decode step
    (measured on a CPU). Not for graphs of few operators with large tensors, which the caches still hold when they are
    free at once.
    ``PADDLEMIX_CPU_TUNING=0`` and a flag that the user has set leave it so.
    """
    paddle: Any = sys.modules["paddle"]
    if tunes_cpu() and env.set_default("FLAGS_eager_delete_tensor_gb", "0.01"):
        paddle.set_flags({"FLAGS_eager_delete_tensor_gb": 0.01})


def mkl_cpu_type(cpuinfo: str) -> str | None:
    """The value of ``MKL_DEBUG_CPU_TYPE`` for a machine with this ``/proc/cpuinfo``, or None when none is needed.

    7 is the AVX-512 path and may only be taken with avx512f, 5 the AVX2 path; MKL finds its path on Intel by itself.
    """
    if "AuthenticAMD" not in cpuinfo:
        return None
    flags = next((line.split(":", 1)[1].split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])
    if "avx512f" in flags:
        return "7"
    return "5" if "avx2" in flags else None


def _tune_mkl() -> str | None:
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    value = mkl_cpu_type(cpuinfo)
    if value is None or not env.set_default("MKL_DEBUG_CPU_TYPE", value):
        return None
    return f"MKL_DEBUG_CPU_TYPE={value} ({'AVX-512' if value == '7' else 'AVX2'})"


def _tune_strides() -> str | None:
    if not env.set_default("FLAGS_use_stride_kernel", "0"):
        return None
    paddle: Any = sys.modules.get("paddle")
    if paddle is not None:  # the variable is read at import only
        paddle.set_flags({"FLAGS_use_stride_kernel": False})
    return "FLAGS_use_stride_kernel=0"


def _tune_allocator() -> str | None:
    if not sys.platform.startswith("linux"):
        return None
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return None
    if not (mallopt(_M_MMAP_THRESHOLD, 1 << 30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)):
        return None
    _tuned_allocator.append(True)
    return "malloc keeps freed memory"
