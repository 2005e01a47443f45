# SPDX-License-Identifier: Apache-2.0
"""The environment variables of an Ascend machine: what is recommended, and which values are wrong or missing.

The plug-in reads its flags when it is loaded, that is while paddle is imported; a flag that is set later is not seen.
``config/npu/env.sh`` sets the same values, and says why. Nothing here needs a card: the checks are tested with made-up
environments.
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from paddlemix.utils import env
from paddlemix.utils.registry import nearest

Read = Callable[[str], str | None]

RECOMMENDED = {
    "FLAGS_npu_storage_format": "0",
    "FLAGS_use_stride_kernel": "0",
    "FLAGS_npu_jit_compile": "0",
    "FLAGS_npu_scale_aclnn": "True",
    "FLAGS_npu_split_aclnn": "True",
    "FLAGS_allocator_strategy": "auto_growth",
    "CUSTOM_DEVICE_BLACK_LIST": "set_value,set_value_with_tensor",
    "PADDLE_XCCL_BACKEND": "npu",
}
"""Set by ``config/npu/env.sh``, and by every command that is told to use an npu, unless the user has set them."""

IMAGE_PRESETS = {"FLAGS_allocator_strategy": "naive_best_fit", "HCCL_CONNECT_TIMEOUT": "7200"}
"""What paddle's images for the NPU set (tools/dockerfile of the plug-in, read 2026-11). ``config/npu/env.sh`` takes
these values for nobody's choice and replaces them, unless ``KEEP_IMAGE_PRESETS=1``."""

LAUNCHER = "PADDLE_XCCL_BACKEND"
"""Up to paddle 3.0 the launcher knows by this variable alone that the devices of the machine are npus."""

PADDLE_SWITCHES = ("FLAGS_use_stride_kernel", "FLAGS_set_to_1d")
"""Flags of paddle itself that are on or off; it reads them in another way than the plug-in reads its own."""

SWITCHES = (
    *PADDLE_SWITCHES,
    "FLAGS_npu_storage_format",
    "FLAGS_npu_jit_compile",
    "FLAGS_npu_scale_aclnn",
    "FLAGS_npu_split_aclnn",
    "FLAGS_npu_blocking_run",
    "FLAGS_npu_check_nan_inf",
    "FLAGS_npu_runtime_debug",
    "FLAGS_npu_reuse_event",
)
"""Flags that are on or off."""

PLUGIN_FLAGS = (
    *(name for name in SWITCHES if name.startswith("FLAGS_npu_")),
    "FLAGS_npu_profiling_dir",
    "FLAGS_npu_profiling_dtypes",
    "FLAGS_npu_profiling_metrics",
)
"""Flags of the plug-in that are known (its runtime/flags.h); another name of this kind is probably misspelt."""

ALLOCATORS = ("auto_growth", "naive_best_fit", "thread_local")

TIMEOUTS = {"HCCL_CONNECT_TIMEOUT": (120, 7200), "HCCL_EXEC_TIMEOUT": (0, 2**31 - 1)}
"""Seconds that HCCL accepts on a 910B (CANN 8.5, list of environment variables; a 910A ends at 17340). 0: for ever."""

MISSPELT = {"HCCL_INTRA_PCIE_EHABLE": "HCCL_INTRA_PCIE_ENABLE", "MC2_Recompute": "FLAGS_NPU_MC2_Recompute"}
"""Names that stand in published scripts and that nothing reads."""

TOOLKIT = ("ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
"""CANN's set_env.sh sets these; the first is where its operators lie."""

_TRUE, _FALSE = ("t", "T", "y", "Y", "1"), ("f", "F", "n", "N", "0")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one variable, and the remedy. A ``fatal`` one makes a run fail or compute something else."""

    variable: str
    text: str
    fatal: bool = True

    def __str__(self) -> str:
        return self.text


def problems(
    read: Read = env.raw, *, cards: int | None = None, interfaces: Iterable[str] | None = None
) -> list[Problem]:
    """Everything that is wrong with the variables of this process. ``read`` gives a variable or None.

    ``cards``: number of cards of the machine (None: as ``count_cards``; 0: unknown, nothing is said about numbers).
    ``interfaces``: names of its network interfaces (None: as the kernel lists them).
    """
    known = count_cards() if cards is None else cards
    found = [_switch(name, read(name)) for name in SWITCHES]
    found += [_visible(read("ASCEND_RT_VISIBLE_DEVICES"), known), _allocator(read("FLAGS_allocator_strategy"))]
    found += [_black_list(read("CUSTOM_DEVICE_BLACK_LIST")), _plugin_root(read("CUSTOM_DEVICE_ROOT"))]
    found += [_backend(read(LAUNCHER))]
    found += [_seconds(name, read(name), *limits) for name, limits in TIMEOUTS.items()]
    found += [_address(read("HCCL_IF_IP")), _interface(read("HCCL_SOCKET_IFNAME"), interfaces)]
    found += [_misspelt(name, read(name)) for name in MISSPELT]
    if known:
        found.append(_toolkit(read))
    return [problem for problem in found if problem is not None]


def unknown_flags(names: Iterable[str]) -> list[Problem]:
    """Names that look like a flag of the plug-in but are none: most likely a slip of the pen."""
    return [
        Problem(name, f"{name} is no flag of the plug-in that is known here{nearest(name, PLUGIN_FLAGS)}", fatal=False)
        for name in names
        if name.startswith("FLAGS_npu_") and name not in PLUGIN_FLAGS
    ]


def differences(read: Read = env.raw) -> dict[str, tuple[str | None, str]]:
    """Recommended variables that stand otherwise: name to (value or None, recommended)."""
    return {name: (read(name), value) for name, value in RECOMMENDED.items() if not _same(name, read(name), value)}


def count_cards(dev: Path = Path("/dev")) -> int:
    """Number of Ascend cards that the driver offers to this machine or container; 0 without a driver."""
    if not dev.is_dir():
        return 0
    return sum(1 for path in dev.iterdir() if re.fullmatch(r"davinci\d+", path.name))


def network_interfaces(root: Path = Path("/sys/class/net")) -> list[str]:
    """Names of the network interfaces; empty where the kernel does not list them."""
    return sorted(path.name for path in root.iterdir()) if root.is_dir() else []


def is_on(name: str, value: str) -> bool | None:
    """Whether ``value`` switches the flag ``name`` on; None when it is ignored and the default stays.

    The plug-in (its runtime/flags.h) takes what begins with t, y or 1 for on, an empty value too, and all else for off.
    Paddle takes 1 and true, 0 and false, and ignores all else (tried with 3.0.0 and 3.3.1).
    """
    if name in PADDLE_SWITCHES:
        return {"1": True, "true": True, "0": False, "false": False}.get(value.lower())
    return not value or value.startswith(_TRUE)


def _same(name: str, value: str | None, recommended: str) -> bool:
    if value is None:
        return False
    if name in SWITCHES:
        return is_on(name, value) is is_on(name, recommended)
    return value == recommended


def _switch(name: str, value: str | None) -> Problem | None:
    if value is None:
        return None
    if name in PADDLE_SWITCHES:
        known = is_on(name, value) is not None
        text = "paddle takes 1, true, 0 and false and ignores all else, so the default would stay"
    else:
        known = value.startswith(_TRUE + _FALSE)
        text = "only values that begin with t, y or 1 mean on, so this one would silently mean off"
        if not value:
            text = "an empty value means on for the plug-in"
    return None if known else Problem(name, f'{name}="{value}": {text}; write 1 or 0')


def _visible(value: str | None, cards: int) -> Problem | None:
    if value is None:
        return None
    name = "ASCEND_RT_VISIBLE_DEVICES"
    what = f'{name}="{value}"'
    parts = value.split(",")
    if not all(part.isascii() and part.isdigit() for part in parts):
        return Problem(
            name, f"{what}: write numbers with commas and no spaces, such as 0,1,2,3; from the first other sign on "
            "CANN ignores the rest without a word"
        )  # fmt: skip
    numbers = [int(part) for part in parts]
    if numbers != sorted(set(numbers)):
        return Problem(name, f"{what}: CANN wants rising numbers, each once")
    if cards and numbers[-1] >= cards:
        several = f"{cards} cards, numbered 0 to {cards - 1}" if cards > 1 else "1 card, number 0"
        whole = ",".join(str(number) for number in range(cards))
        return Problem(name, f"{what}: card {numbers[-1]} is not there; this machine has {several}; for all: {whole}")
    return None


def _allocator(value: str | None) -> Problem | None:
    if value is None or value in ALLOCATORS:
        return None
    name = "FLAGS_allocator_strategy"
    return Problem(name, f'{name}="{value}": expected one of {", ".join(ALLOCATORS)}{nearest(value, ALLOCATORS)}')


def _black_list(value: str | None) -> Problem | None:
    name = "CUSTOM_DEVICE_BLACK_LIST"
    if not value or all(re.fullmatch(r"\w+", part) for part in value.split(",")):
        return None
    return Problem(name, f'{name}="{value}": expected names of operators with commas and no spaces')


def _plugin_root(value: str | None) -> Problem | None:
    if not value or Path(value).is_dir():
        return None
    name = "CUSTOM_DEVICE_ROOT"
    return Problem(name, f'{name}="{value}": no such folder; unset it, paddle then finds the installed plug-in itself')


def _backend(value: str | None) -> Problem | None:
    if value in (None, RECOMMENDED[LAUNCHER]):
        return None
    text = f'{LAUNCHER}="{value}": paddle\'s launcher would look for devices of this kind; write npu'
    return Problem(LAUNCHER, text)


def _seconds(name: str, value: str | None, low: int, high: int) -> Problem | None:
    if value is None or (value.isascii() and value.isdigit() and low <= int(value) <= high):
        return None
    return Problem(name, f'{name}="{value}": expected a whole number of seconds from {low} to {high}')


def _address(value: str | None) -> Problem | None:
    if not value:
        return None
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return Problem("HCCL_IF_IP", f'HCCL_IF_IP="{value}": expected the IP address of this machine, not a name')
    return None


def _interface(value: str | None, interfaces: Iterable[str] | None) -> Problem | None:
    """HCCL takes ``eth`` (all that begin so), ``=eth0`` (this one), and ``^docker`` or ``^=eth0`` (all but these)."""
    there = network_interfaces() if interfaces is None else list(interfaces)
    if not value or not there or value.startswith("^"):
        return None
    exact = value.startswith("=")
    for name in value.removeprefix("=").split(","):
        if not any(other == name if exact else other.startswith(name) for other in there):
            return Problem(
                "HCCL_SOCKET_IFNAME",
                f'HCCL_SOCKET_IFNAME="{value}": no network interface {name}; this machine has {", ".join(there)}',
            )
    return None


def _misspelt(name: str, value: str | None) -> Problem | None:
    if value is None:
        return None
    return Problem(name, f"{name} is read by nothing; {MISSPELT[name]} is the name", fatal=False)


def _toolkit(read: Read) -> Problem | None:
    if any(read(name) for name in TOOLKIT):
        return None
    return Problem(
        TOOLKIT[0],
        f"{TOOLKIT[0]} is not set: source CANN's set_env.sh (/usr/local/Ascend/ascend-toolkit/set_env.sh), or "
        "config/npu/env.sh, which does it",
        fatal=False,
    )
