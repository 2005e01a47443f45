# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run for the programs that draw curves: TensorBoard, VisualDL, Weights & Biases, SwanLab.

PaddleNLP's own callbacks are not used: they ask the model for a configuration of PaddleNLP's kind, and one of them
writes every argument of the run, keys included, into its file.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from paddlemix.settings.run.loader import settings_to_json
from paddlemix.settings.run.training import TrainingSettings
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.install import install_line
from paddlemix.utils.logging import get_logger
from paddlemix.utils.shown import shown

PROJECT = "paddlemix"


class Writer(Protocol):
    """Where one program gets its numbers."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Write the values of a step, named ``train/loss``."""

    def close(self) -> None:
        """Write what is still in memory."""


@dataclass(frozen=True)
class _Job:
    """What a writer is opened with."""

    folder: Path
    name: str | None
    settings: dict[str, Any]
    key: str | None
    proxy: str | None


class ScalarWriter(Protocol):
    """What TensorBoard's and VisualDL's writers have in common."""

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """One number of a step."""

    def flush(self) -> None:
        """Write what is still in memory."""

    def close(self) -> None:
        """Close the file."""


class _Scalars:
    """TensorBoard's and VisualDL's writers, which take one number at a time."""

    def __init__(self, writer: ScalarWriter) -> None:
        self.writer = writer

    def log(self, values: dict[str, float], step: int) -> None:
        """One scalar a value."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class _Run:
    """A run of Weights & Biases or of SwanLab."""

    def __init__(self, package: ModuleType) -> None:
        self.package = package

    def log(self, values: dict[str, float], step: int) -> None:
        """All values of a step at once."""
        self.package.log(values, step=step)

    def close(self) -> None:
        """End the run."""
        self.package.finish()


def _tensorboard(package: ModuleType, job: _Job) -> Writer:
    return _Scalars(package.SummaryWriter(str(job.folder)))


def _visualdl(package: ModuleType, job: _Job) -> Writer:
    return _Scalars(package.LogWriter(logdir=str(job.folder)))


def _wandb(package: ModuleType, job: _Job) -> Writer:
    if job.key:
        package.login(key=job.key)
    settings = package.Settings(https_proxy=job.proxy) if job.proxy else None
    package.init(project=PROJECT, name=job.name, dir=str(job.folder), config=job.settings, settings=settings)
    return _Run(package)


def _swanlab(package: ModuleType, job: _Job) -> Writer:
    package.init(project=PROJECT, name=job.name, log_dir=str(job.folder), config=job.settings)
    return _Run(package)


@dataclass(frozen=True)
class Reporter:
    """A program that ``report_to`` can name: the package that it needs, and how it is opened."""

    package: str
    open: Callable[[ModuleType, _Job], Writer]


REPORTERS = {
    "tensorboard": Reporter("tensorboardX", _tensorboard),
    "visualdl": Reporter("visualdl", _visualdl),
    "wandb": Reporter("wandb", _wandb),
    "swanlab": Reporter("swanlab", _swanlab),
}


SERVERS = ("wandb", "swanlab")
"""Those that send their numbers to a server, unless NAME_MODE is offline."""


def require_reporters(settings: TrainingSettings) -> None:
    """ConfigError for a program of ``report_to`` whose package is not installed, with the line that installs it."""
    for name in settings.training.report_to or ():
        package = REPORTERS[name].package
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f'"report_to" names {name}, but the package "{package}" is not installed: {install_line(name)}; '
                f"or take {name} out of report_to"
            )


class Reports:
    """All programs of ``report_to``, in the first process of a run; the others report to nobody.

    A number that one of them refuses ends nothing.
    """

    def __init__(self, settings: TrainingSettings, output: Path, *, main: bool = True) -> None:
        training = settings.training
        folder = Path(training.logging_dir).expanduser() if training.logging_dir else output / "runs"
        self._job = _Job(
            folder, training.run_name, settings_to_json(settings), training.wandb_api_key, training.wandb_http_proxy
        )
        self._packages = {name: _imported(name) for name in training.report_to or () if main}
        self._writers: dict[str, Writer] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Open the writers, and close them at the end.

        ConfigError when one of the programs refuses, for example without a login.
        """
        try:
            for name, package in self._packages.items():
                self._job.folder.mkdir(parents=True, exist_ok=True)
                self._writers[name] = self._open(name, package)
            yield
        finally:
            for writer in self._writers.values():
                writer.close()
            self._writers = {}

    def _open(self, name: str, package: ModuleType) -> Writer:
        try:
            return REPORTERS[name].open(package, self._job)
        except _errors_of(package) as error:
            with contextlib.suppress(OSError):  # not empty: it says more
                self._job.folder.rmdir()
            server = f"log in with its own command, set {name.upper()}_MODE=offline, or " if name in SERVERS else ""
            raise ConfigError(
                f'"report_to" names {name}, which cannot begin ({type(error).__name__}: {shown(error)}); {server}take '
                f"{name} out of report_to"
            ) from error

    def log(self, logs: dict[str, Any], step: int) -> None:
        """Hand on the numbers of a log line."""
        values = {_placed(name): value for name, value in logs.items() if isinstance(value, int | float)}
        for name, writer in list(self._writers.items()):
            try:
                writer.log(values, step)
            except _errors_of(self._packages[name]) as error:
                get_logger(__name__).warning(f"{name} takes no more numbers ({type(error).__name__}: {shown(error)})")
                del self._writers[name]


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(REPORTERS[name].package)
    except ImportError as error:
        raise ConfigError(
            f'"report_to" names {name}, whose package cannot be imported ({shown(error)}): {install_line(name)}; or '
            f"take {name} out of report_to"
        ) from error


def _placed(name: str) -> str:
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _errors_of(package: ModuleType) -> tuple[type[Exception], ...]:
    """What the package raises when it cannot begin or write: its own errors, and those of files and networks."""
    own = getattr(getattr(package, "errors", None), "Error", None)
    return (OSError, RuntimeError, ValueError, *([own] if own is not None else []))
