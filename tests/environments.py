# SPDX-License-Identifier: Apache-2.0
"""Fresh Python environments that are made in a second: they borrow the packages of the running one, or have none."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))


def environment(folder: Path, *paths: Path) -> Path:
    """A new environment without packages but those in ``paths``; its interpreter."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    site = next((folder / "lib").glob("python*")) / "site-packages"
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in paths))
    return folder / "bin" / "python"


def borrowed(folder: Path, wanted: Callable[[str], bool]) -> Path:
    """``folder`` with a link to each installed package whose file name, in lower case, is ``wanted``."""
    folder.mkdir()
    for part in PACKAGES.iterdir():
        # An editable installation would bring the project that this test belongs to.
        if wanted(part.name.lower()) and not part.name.startswith("__editable__"):
            (folder / part.name).symlink_to(part)
    return folder


def add_program(python: Path, name: str, target: str) -> None:
    """What an installer makes of the entry point ``name = module:function``."""
    module, _, function = target.partition(":")
    script = python.parent / name
    script.write_text(f"#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    script.chmod(0o755)
