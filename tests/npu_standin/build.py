# SPDX-License-Identifier: Apache-2.0
"""Builds the stand-in device with g++ alone, once for each state of its sources, and runs workers on it."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from pathlib import Path
from typing import Any

PLUGIN = Path(__file__).resolve().parent / "plugin"
REPOSITORY = PLUGIN.parents[2]
LIBRARY = "libpaddle-custom-npu.so"
FLAGS = ("-std=c++17", "-O1", "-fPIC", "-w", "-DPADDLE_WITH_CUSTOM_KERNEL", "-DPADDLE_WITH_CUSTOM_DEVICE")


def missing() -> str | None:
    """Why the stand-in cannot be built here; None when it can."""
    if shutil.which("g++") is None:
        return "NOT TESTED: g++ is missing, so the stand-in npu device cannot be built (install g++)"
    return None


def build() -> Path:
    """Folder for CUSTOM_DEVICE_ROOT that holds the library only. About ten seconds the first time, then none."""
    import paddle

    home = Path(paddle.__file__).parent
    digest = hashlib.sha256(repr((FLAGS, paddle.__version__, str(home), sys.version)).encode())
    for path in sorted(PLUGIN.iterdir()):
        digest.update(path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"paddlemix-npu-standin-{os.getuid()}" / digest.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "lib" / LIBRARY
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            _compile(home, folder)
    return done.parent


def _compile(home: Path, folder: Path) -> None:
    """Files with the same headers are compiled as one: reading paddle's headers is most of the work."""
    include = [PLUGIN, home / "include", home / "include" / "third_party", Path(sysconfig.get_paths()["include"])]
    common = ["g++", *FLAGS, *(f"-I{path}" for path in include)]
    sources = []
    for group in ("operators", "kernels", "runtime"):
        whole = folder / f"all_{group}.cc"
        parts = sorted(path for path in PLUGIN.glob("*.cc") if _group(path) == group)
        whole.write_text("".join(f'#include "{path.name}"\n' for path in parts), encoding="utf-8")
        sources.append(whole)
    objects = [path.with_suffix(".o") for path in sources]
    running = [
        subprocess.Popen([*common, "-c", str(path), "-o", str(out)], stderr=subprocess.PIPE, text=True)
        for path, out in zip(sources, objects, strict=True)
    ]
    errors = [process.communicate()[1] for process in running]
    if any(process.returncode for process in running):
        raise RuntimeError("the stand-in device does not compile:\n" + "\n".join(errors))
    (folder / "lib").mkdir(exist_ok=True)
    libraries = [str(home / "base" / "libpaddle.so"), f"-L{home / 'libs'}", "-lphi_core", "-lphi", "-lcommon"]
    # Upstream code loads the operators by the bare name of this file, so the name inside must be the same.
    name = f"-Wl,-soname,{LIBRARY},-rpath,{home / 'libs'}:{home / 'base'}"
    raw = folder / LIBRARY
    subprocess.run(["g++", "-shared", name, "-o", str(raw), *map(str, objects), *libraries, "-lrt"], check=True)
    raw.rename(folder / "lib" / LIBRARY)


def _group(source: Path) -> str:
    text = source.read_text(encoding="utf-8")
    named = {'#include "operators.h"': "operators", '#include "delegate.h"': "kernels"}
    return next((group for line, group in named.items() if line in text), "runtime")


def environment(library: Path, **changes: str) -> dict[str, str]:
    """The environment of a worker: the stand-in and nothing else of ours; ``changes`` on top."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PADDLEMIX_", "NPU_", "FLAGS_"))}
    return {
        **kept,
        "CUSTOM_DEVICE_ROOT": str(library),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "GLOG_minloglevel": "2",
        "FLAGS_use_stride_kernel": "0",
        "PADDLE_XCCL_BACKEND": "npu",
        **changes,
    }


def run_worker(library: Path, case: str, **changes: str) -> dict[str, Any]:
    """Run ``case`` of worker.py (or ``towers.case`` of towers.py) in a process of its own; returns what it found."""
    module, _, name = case.rpartition(".")
    command = [sys.executable, "-W", "ignore", "-m", f"tests.npu_standin.{module or 'worker'}", name]
    ran = subprocess.run(
        command, env=environment(library, **changes), cwd=REPOSITORY, capture_output=True, text=True, timeout=240
    )
    lines = [line for line in ran.stdout.splitlines() if line.startswith("RESULT ")]
    if ran.returncode or not lines:
        raise RuntimeError(f"worker {case} {changes} ended with {ran.returncode}\n{ran.stdout}\n{ran.stderr[-6000:]}")
    return {**json.loads(lines[-1][7:]), "log": ran.stdout + ran.stderr}


def launch(
    library: Path, folder: Path, script: str, devices: int = 2, seconds: float = 300, **more: str
) -> dict[str, Any]:
    """Run a script of this folder on so many devices by paddle's launcher; gives back what it wrote to told.json.

    After so many seconds the launcher and its processes are killed.
    """
    path, logs = REPOSITORY / "tests" / "npu_standin" / script, folder / "logs"
    launcher = [sys.executable, "-W", "ignore", "-m", "paddle.distributed.launch"]
    numbers = ",".join(map(str, range(devices)))
    changes = {"PADDLEMIX_NPU_ATTENTION_FLOAT32": "1", "NPU_STANDIN_FLOAT32": "1", "NPU_STANDIN_DEVICES": str(devices)}
    with subprocess.Popen(
        [*launcher, "--npus", numbers, "--log_dir", str(logs), str(path), str(folder), "npu"],
        env=environment(library, **{**changes, **more}),
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as running:
        ended = threading.Timer(seconds, _end_all, [running.pid])
        ended.start()
        errors = running.communicate()[1]
        ended.cancel()
    told = "\n".join(path.read_text()[-3000:] for path in sorted(logs.glob("workerlog.*")))
    assert running.returncode == 0, f"{told}\nthe launcher ended with {running.returncode}: {errors[-1500:]}"
    return json.loads((folder / "told.json").read_text(encoding="utf-8"))


def _end_all(launcher: int) -> None:
    """Kill a launcher and what it has started, each of which has a session of its own."""
    for process in [*map(int, _children(launcher)), launcher]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def _children(process: int) -> list[str]:
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
