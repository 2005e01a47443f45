# SPDX-License-Identifier: Apache-2.0
"""Compile a file of kernels (``kernels.c``) with this machine's compiler, once, and load it.

The library lies in ``$PPMIX_HOME/kernels`` under the digest of what it was made for (source, flags and processor), and
that of its bytes; once it is there no compiler is needed. The folder has to belong to the user alone, since what lies
there is run; where it cannot be used the library is compiled into a temporary folder for this process.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from paddlemix.utils import paths
from paddlemix.utils.logging import get_logger

SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared")
_SECONDS = 120
_NATIVE = {"x86_64": "-march=native", "aarch64": "-mcpu=native", "arm64": "-mcpu=native"}
"""What lets the compiler use all instructions of this processor, by the machine's name."""


class NoKernelsError(Exception):
    """There are no compiled kernels here; the text says why."""


@dataclass(frozen=True)
class Recipe:
    """How a file is compiled: by the first of ``compilers`` that there is."""

    source: Path
    compilers: tuple[str, ...] = ("cc", "gcc", "clang")
    flags: tuple[str, ...] = FLAGS
    places: tuple[str, ...] = ()
    """Further arguments, of where other files lie on this machine; which ones they are is told by ``made_for``."""
    native: bool = True
    """With all instructions of this processor."""
    made_for: str = ""
    """What the library depends on besides: with another one it is made anew."""
    stays: bool = False
    """Of use only where it can be kept, since others open it by its name."""

    @classmethod
    def of(cls, source: "Path | Recipe | None") -> "Recipe":
        """That of a C file; None: ``kernels.c``."""
        return source if isinstance(source, Recipe) else Recipe(source or SOURCE)


def library(source: Path | Recipe | None = None) -> ctypes.CDLL:
    """The compiled kernels of ``source`` (None: ``kernels.c``). NoKernelsError when there are none."""
    found = _found(source)
    if isinstance(found, str):
        raise NoKernelsError(found)
    return found


def why_not(source: Path | Recipe | None = None) -> str | None:
    """Why there are no compiled kernels on this machine; None when there are."""
    found = _found(source)
    return found if isinstance(found, str) else None


@functools.cache
def _found(source: Path | Recipe | None = None) -> ctypes.CDLL | str:
    """Asked once in a process: a compiler that fails would fail again for the next model."""
    try:
        return _load(source)
    except NoKernelsError as error:
        return str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return f"{Recipe.of(source).source.name} could not be compiled or loaded ({error})"


def _load(source: Path | Recipe | None = None) -> ctypes.CDLL:
    recipe = Recipe.of(source)
    if sys.byteorder != "little":
        raise NoKernelsError("the processor is big-endian")
    name = f"{recipe.source.stem}-{_digest(recipe)}"
    folder = paths.home("kernels")
    reason = _unusable(folder)
    if reason is None:
        for kept in folder.glob(f"{name}-*.so"):
            if _is_ours(kept) and kept == folder / _named(name, kept):
                with contextlib.suppress(OSError):  # made on a machine with a newer C library
                    return ctypes.CDLL(str(kept))
    if recipe.stays and reason is not None:
        raise NoKernelsError(f"compiled operators cannot be kept: {reason}")
    compiler = next(filter(None, map(shutil.which, recipe.compilers)), None)
    if compiler is None:
        first, *others = recipe.compilers
        language = "C++" if "++" in first else "C"
        raise NoKernelsError(f"no {language} compiler ({first}, {' or '.join(others)}) is on the PATH")
    if reason is None:
        with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as place:
            made = _compiled(compiler, recipe, Path(place) / f"{name}.so")
            kept = folder / _named(name, made)
            os.replace(made, kept)
        return ctypes.CDLL(str(kept))
    get_logger(__name__).warning(f"kernels ({recipe.source.name}) are compiled for this process alone, since {reason}")
    with tempfile.TemporaryDirectory(prefix="paddlemix-kernels-") as place:
        return ctypes.CDLL(str(_compiled(compiler, recipe, Path(place) / f"{name}.so")))


def _named(name: str, library: Path) -> str:
    """The name of a kept library, with the digest of its bytes: one that was cut would end the process by SIGBUS."""
    return f"{name}-{hashlib.sha256(library.read_bytes()).hexdigest()[:16]}.so"


def _digest(recipe: Recipe) -> str:
    words = " ".join((*recipe.flags, recipe.made_for))
    facts = (recipe.source.read_bytes(), words.encode(), _processor().encode())
    return hashlib.sha256(b"\0".join(facts)).hexdigest()[:16]


def _processor() -> str:
    """Which instructions there are: a home folder may be shared by machines of several kinds."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.partition(":")[0].strip().lower() in ("flags", "features"):
                return f"{platform.machine()} {line}"
    return f"{platform.machine()} {platform.processor()}"


def _unusable(folder: Path) -> str | None:
    """Why libraries must not be kept in ``folder``; it is made when it is missing."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.stat()
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror})"
    if hasattr(os, "getuid") and facts.st_uid != os.getuid():
        return f"{folder} belongs to another user"
    if facts.st_mode & 0o022:
        return f"others may write into {folder}"
    for above in folder.resolve().parents:
        if _others_may_rename(above.stat()):
            return f"others may write into {above}, and put another folder in its place"
    return None if os.access(folder, os.W_OK | os.X_OK) else f"{folder} cannot be written"


def _others_may_rename(facts: os.stat_result) -> bool:
    """Whether somebody else may exchange what lies in a folder; a sticky one (/tmp) leaves each his own.

    The user's own group counts as the user: many systems give everybody one, and let it write.
    """
    own_group = not hasattr(os, "getegid") or facts.st_gid == os.getegid()
    return bool(facts.st_mode & (0o002 if own_group else 0o022)) and not facts.st_mode & stat.S_ISVTX


def _is_ours(path: Path) -> bool:
    """Whether a library is there that nobody else can have written."""
    facts = path.lstat()
    own = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
    return path.is_file() and not path.is_symlink() and own and not facts.st_mode & 0o022


def _compiled(compiler: str, recipe: Recipe, target: Path) -> Path:
    native = _NATIVE.get(platform.machine().lower()) if recipe.native else None
    for more in ([native], []) if native else ([],):
        command = [compiler, *recipe.flags, *more, str(recipe.source), *recipe.places, "-o", str(target)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)  # noqa: S603
        if done.returncode == 0:
            target.chmod(0o700)
            return target
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    raise NoKernelsError(f"{compiler} failed: {lines[0][:200]}")


@functools.cache
def team() -> tuple[ctypes.c_void_p, "ctypes._CFuncPtr | None"]:
    """The fork function of the OpenMP runtime that paddle computes with, and what gives its number of threads.

    Two runtimes beside each other would each keep a thread waiting on every core. (None, None): one thread.
    """
    import paddle

    places = [Path(paddle.__file__).parent / "libs" / "libiomp5.so", "libgomp.so.1"]
    for place in places:
        with contextlib.suppress(OSError, AttributeError):
            found = ctypes.CDLL(str(place))
            fork, threads = found.GOMP_parallel, found.omp_get_max_threads
            threads.restype = ctypes.c_int
            return ctypes.cast(fork, ctypes.c_void_p), threads
    return ctypes.c_void_p(None), None


@functools.cache
def multiply() -> ctypes.c_void_p | None:
    """``cblas_sgemm`` of the library that paddle multiplies with; None where it lies elsewhere (another than MKL)."""
    import paddle

    with contextlib.suppress(OSError, AttributeError):
        found = ctypes.CDLL(str(Path(paddle.__file__).parent / "libs" / "libmklml_intel.so")).cblas_sgemm
        return ctypes.cast(found, ctypes.c_void_p)
    return None
