# SPDX-License-Identifier: Apache-2.0
"""The one table of environment flags: name, kind, default, meaning. ``os.environ`` is read in this file only."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from paddlemix.utils.errors import ConfigError
from paddlemix.utils.shown import shown


@dataclass(frozen=True)
class Flag:
    """One environment flag. ``choices`` empty means free text; the value of a ``secret`` is shown nowhere."""

    name: str
    default: str
    choices: tuple[str, ...]
    meaning: str
    secret: bool = False


_SWITCH = ("auto", "0", "1")

FLAGS: dict[str, Flag] = {
    flag.name: flag
    for flag in (
        Flag(
            "PADDLEMIX_ATTENTION",
            "auto",
            ("auto", "math", "sdpa", "npu"),
            "Attention backend. auto takes the first that can serve the request.",
        ),
        Flag("PADDLEMIX_NPU_FUSED", "auto", _SWITCH, "Fused NPU operators as a whole."),
        Flag("PADDLEMIX_NPU_FUSED_ATTENTION", "auto", _SWITCH, "Fused NPU flash attention."),
        Flag(
            "PADDLEMIX_NPU_ATTENTION_FLOAT32",
            "0",
            ("0", "1"),
            "1 hands float32 to the fused attention too, which a card refuses and a stand-in device may take.",
        ),
        Flag("PADDLEMIX_NPU_FUSED_RMS_NORM", "auto", _SWITCH, "Fused NPU RMSNorm."),
        Flag("PADDLEMIX_NPU_FUSED_ROPE", "auto", _SWITCH, "Fused NPU rotary embedding."),
        Flag("PADDLEMIX_NPU_FUSED_SWIGLU", "auto", _SWITCH, "Fused NPU SwiGLU."),
        Flag(
            "PADDLEMIX_NPU_FUSED_MC2",
            "0",
            _SWITCH,
            "Products of tensor parallel with their sum in one NPU operator. Off unless asked for, as in PaddleNLP.",
        ),
        Flag(
            "PADDLEMIX_LOW_BITS",
            "auto",
            ("auto", "compiled", "plain"),
            "What multiplies with weights of few bits on a CPU: kernels that the system's C compiler makes once, or "
            "numpy and paddle.",
        ),
        Flag(
            "PADDLEMIX_MEMORY_CHECK",
            "1",
            ("0", "1"),
            "0 starts a training on npus also where its expected memory is more than a card has.",
        ),
        Flag(
            "PADDLEMIX_CPU_TUNING",
            "1",
            ("0", "1"),
            "CPU tuning at the entry points (see utils/device.py); 0 leaves the process alone.",
        ),
        Flag("PADDLEMIX_LOG_LEVEL", "INFO", ("DEBUG", "INFO", "WARNING", "ERROR"), "Level of the console log."),
        Flag(
            "PADDLEMIX_HUB",
            "https://huggingface.co",
            (),
            "Where models are downloaded from when a name is not on this machine: huggingface, hf-mirror, modelscope "
            "or an address; off downloads nothing.",
        ),
        Flag(
            "PADDLEMIX_FETCH_PROXY",
            "",
            (),
            "http://HOST:PORT of a proxy that images by address go through; http_proxy and the like are not used.",
        ),
        Flag(
            "PADDLEMIX_JUDGE_KEY",
            "",
            (),
            "Key of the judge's endpoint (eval review, eval judge); it is sent there alone and written nowhere.",
            secret=True,
        ),
        Flag("PPMIX_HOME", "~/.paddlemix", (), "Folder of downloaded models and data sets."),
        Flag("PADDLEMIX_GOLDEN", "", (), "Folder of the full golden data; the tests use a small copy without it."),
    )
}


NUMBERS = (
    "PADDLE_TRAINER_ID",
    "PADDLE_TRAINERS_NUM",
    "PADDLE_RANK_IN_NODE",
    "PADDLE_LOCAL_RANK",
    "PADDLE_LOCAL_SIZE",
    "PADDLE_GLOBAL_RANK",
    "PADDLE_GLOBAL_SIZE",
    "PADDLE_NNODES",
    "PADDLE_PORT",
    "FLAGS_START_PORT",
)
"""Variables of paddle's launcher that are whole numbers."""


def get(name: str) -> str:
    """Value of a flag of the table. ConfigError names the variable and the accepted values."""
    flag = FLAGS[name]
    value = os.environ.get(name, flag.default)
    if flag.choices and value not in flag.choices:
        raise ConfigError(f'environment variable {name}="{shown(value)}": expected one of {", ".join(flag.choices)}')
    return value


def is_set(name: str) -> bool:
    """True when the environment has the variable, whatever it holds. Cheap enough for each layer of a decode step."""
    return name in os.environ


def raw(name: str) -> str | None:
    """A variable that belongs to somebody else (FLAGS_*, MKL_*, PADDLE_*), as it stands."""
    return os.environ.get(name)


def rank() -> int:
    """Number of this process among those of its run, as the launcher says; known before paddle is imported."""
    return int(raw("PADDLE_TRAINER_ID") or "0")


def processes() -> int:
    """Processes of this run, as the launcher says."""
    return int(raw("PADDLE_TRAINERS_NUM") or "1")


def endpoint() -> str:
    """``HOST:PORT`` of this process, as the launcher says; empty without a launcher."""
    return raw("PADDLE_CURRENT_ENDPOINT") or ""


def names(prefix: str) -> list[str]:
    """Names of all variables of this process that begin with ``prefix``."""
    return sorted(name for name in os.environ if name.startswith(prefix))


def set_default(name: str, value: str) -> bool:
    """Set a foreign variable unless the user has set it. True when it was set here."""
    if name in os.environ:
        return False
    os.environ[name] = value
    return True


def put(name: str, value: str) -> None:
    """Set a foreign variable for this process and those that it starts."""
    os.environ[name] = value


def all_with(changes: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that this one starts: its own with ``changes``."""
    return {**os.environ, **changes}


@contextlib.contextmanager
def within(changes: Mapping[str, str]) -> Iterator[None]:
    """Foreign variables that hold within the block only."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_all() -> None:
    """Read every flag once, so that garbage is an error at start and not in the middle of a run.

    So are the numbers that paddle reads, which it would fail at while it is imported.
    """
    for name in FLAGS:
        get(name)
    for name in NUMBERS:
        value = os.environ.get(name)
        if value is not None and not (value.isascii() and value.isdigit() and len(value) < 10):
            raise ConfigError(
                f'environment variable {name}="{shown(value)}": expected a whole number; it is for paddle\'s launcher '
                "to set, so unset it"
            )


def check_launch() -> None:
    """ConfigError when a run is said to have several processes and paddle's launcher has not started this one.

    Clusters set PADDLE_TRAINERS_NUM for their own scripts, too; commands that compute in one process leave it alone.
    """
    count = int(raw("PADDLE_TRAINERS_NUM") or "1")
    missing = [name for name in ("PADDLE_TRAINER_ID", "PADDLE_CURRENT_ENDPOINT") if not raw(name)]
    if count < 2 or not (missing or rank() >= count):
        return
    why = f"{missing[0]} is not set" if missing else f'PADDLE_TRAINER_ID is "{rank()}"'
    raise ConfigError(
        f'environment variable PADDLE_TRAINERS_NUM="{shown(count)}", but {why}; start the processes with '
        "python -m paddle.distributed.launch, or unset PADDLE_TRAINERS_NUM for one process"
    )
