# SPDX-License-Identifier: Apache-2.0
"""What to type when a package is missing: the line that installs this very project, never one by a name on an index.

The name ``paddlemix`` on PyPI is another project, so ``pip install paddlemix[cpu]`` would install that one.
"""

import importlib.metadata
import importlib.util
import json
import re
import shlex
import sys
import sysconfig
import urllib.parse
from pathlib import Path

from paddlemix.utils.commands import PROGRAM, ROOT, interpreter, near

NEWEST = (3, 13)
"""The first Python that the packages of this project are not there for (``setup.py``)."""


LOWEST_PADDLE = "3.0.0"
"""As in ``setup.py``, which names none for an NPU: an extra must not replace the wheel that the plug-in belongs to."""

SERVING = ("starlette", "uvicorn", "h11", "prometheus_client")
"""Packages of the extra ``serve``, which an installation of a device's extra has not."""

WEB = "gradio"
"""The package of the extra ``web``. It and paddlenlp want different versions of huggingface_hub."""

WHEELS = ("paddlepaddle", "paddlepaddle-gpu")


def old_paddle() -> str | None:
    """One line when the installed paddle is below ``LOWEST_PADDLE``, or None; nothing is imported.

    A build from sources calls itself 0.0.0, of which nothing is known.
    """
    versions = {name: found.version for name in WHEELS if (found := _distribution(name)) is not None}
    if not versions or any(_is_supported(version) for version in versions.values()):
        return None
    told = " and ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{told} is installed, but {LOWEST_PADDLE} is the lowest paddle that works here; docs/install.md says where "
        "the wheels of newer ones are (PyPI's paddlepaddle-gpu ends at 2.6.2)"
    )


def _is_supported(version: str) -> bool:
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return numbers == [0, 0, 0] or numbers >= [int(part) for part in LOWEST_PADDLE.split(".")]


def missing_package(error: ImportError, root: Path = ROOT) -> str | None:
    """One line about a package that is not there, with the line that installs it. None for a module of our own.

    ``root`` is the checkout, or the folder of installed packages.
    """
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or not name:
        return None
    if name == PROGRAM or name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        return None  # a fault of the program, or of a package that is there
    if sys.version_info >= NEWEST:
        return f"Python 3.10, 3.11 or 3.12 is needed, {sys.executable} is {sys.version.split()[0]}"
    where = f'the package "{name}" is not installed for {sys.executable}'
    if name == WEB:
        words = shlex.join([".venv-web/bin/python", "-m", "pip", "install", *_what("web", root)])
        own = f"{interpreter()} -m venv .venv-web && {words}"
        return f"{where}; the page has an environment of its own, beside the one with paddle: {own}"
    ready = root / ".venv" / "bin"
    if (ready / "python").is_file() and Path(sys.executable).parent != ready:
        where += f", but this project's environment is here: . {shlex.quote(near(ready / 'activate'))}, and again; or"
    else:
        where += "; install what this project needs:"
    return f"{where} {install_line(f'{_extra_here()},serve' if name in SERVING else None, root=root)}"


def install_line(extra: str | None = None, root: Path = ROOT) -> str:
    """The command that installs this project into the running interpreter, with ``extra`` (None: that of this machine).

    From a checkout it is the checkout, from a wheel the folder or file that the wheel came from, and where that is gone
    the packages by their names.
    """
    extra = extra or _extra_here()
    words = [*_installer(), *_what(extra, root)]
    if _belongs_to_the_system():
        return f"{interpreter()} -m venv .venv && {shlex.join(['.venv/bin/python', *words[1:]])}"
    return shlex.join(words)


def _extra_here() -> str:
    """``gpu`` or ``npu`` where the paddle wheel of such a device is installed, which an extra must not replace."""
    for extra, wheel in (("npu", "paddle-custom-npu"), ("gpu", "paddlepaddle-gpu")):
        if _distribution(wheel) is not None:
            return extra
    return "cpu"


def _belongs_to_the_system() -> bool:
    """Whether this Python is the system's own, which takes no packages (PEP 668)."""
    marker = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    return sys.prefix == sys.base_prefix and marker.is_file()


def _installer() -> list[str]:
    python = interpreter()
    if importlib.util.find_spec("pip") is None and not _belongs_to_the_system():
        return ["uv", "pip", "install", "--python", python]
    return [python, "-m", "pip", "install"]


def _what(extra: str, root: Path) -> list[str]:
    if (root / "setup.py").is_file():
        return ["-e", f"{near(root)}[{extra}]"]
    origin = _origin()
    return [f"{origin}[{extra}]"] if origin is not None else _requirements(extra)


def _origin() -> Path | None:
    """The local folder or wheel that pip installed this project from (PEP 610), when it is still there."""
    found = _distribution(PROGRAM)
    told = found.read_text("direct_url.json") if found is not None else None
    if not told:
        return None
    parts = urllib.parse.urlsplit(json.loads(told).get("url", ""))
    path = Path(urllib.parse.unquote(parts.path))
    return path if parts.scheme == "file" and path.exists() else None


def _requirements(extra: str) -> list[str]:
    found = _distribution(PROGRAM)
    lines = [] if found is None else found.requires or []
    wanted = [line.partition(";") for line in lines if "extra ==" not in line or _is_of(line, extra)]
    return [requirement.strip() for requirement, _, _ in wanted]


def _is_of(line: str, extra: str) -> bool:
    return line.partition("extra ==")[2].strip(" '\"") == extra


def _distribution(name: str) -> importlib.metadata.Distribution | None:
    try:
        return importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
