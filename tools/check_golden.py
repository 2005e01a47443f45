# SPDX-License-Identifier: Apache-2.0
"""Compare this project with reference data that the original implementations made.

    python tools/check_golden.py FOLDER [--only TEXT] [--list] [--json FILE]

FOLDER is laid out like tests/data/golden/llava (its MANIFEST.md tells what each file is). The families are the
modules of tools/golden; each finds its cases by listing FOLDER. One line a case; exit code 1 on a failure.
"""

import argparse
import importlib
import json
import pkgutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[0] = str(ROOT)

from tools.golden.case import Case

HELPERS = {"case", "adapter", "weights", "common"}
"""Modules of tools/golden that are no family."""


def families() -> list[str]:
    """Names of the family modules, in order."""
    return sorted(
        item.name for item in pkgutil.iter_modules([str(ROOT / "tools" / "golden")]) if item.name not in HELPERS
    )


def run(folder: Path, only: str | None = None) -> Iterator[Case]:
    """Every case of ``folder``; ``only`` keeps the families and cases whose name holds that text."""
    for name in families():
        for case in _family(name, folder):
            if not only or only in name or only in case.case:
                yield case


def _family(name: str, folder: Path) -> Iterator[Case]:
    """The cases of one family; one that breaks is a failure of its own and does not hide the families behind it."""
    try:
        yield from importlib.import_module(f"tools.golden.{name}").run(folder)
    except Exception as error:  # noqa: BLE001 - see above; the text is printed and counts as a failure
        traceback.print_exc()
        yield Case(f"{name}/stopped", float("inf"), 0.0, "fail", f"{type(error).__name__}: {error}")


def line(case: Case) -> str:
    """``case | max diff | tolerance | status`` of one case, with the reason behind it when there is one."""
    text = f"{case.case} | {case.max_diff:.3g} | {case.tolerance:.3g} | {case.status}"
    return f"{text} | {case.reason}" if case.reason else text


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; 0 when nothing failed, 1 on a failure, 2 when FOLDER holds no known data."""
    from paddlemix.utils.paths import new_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", help="only families or cases whose name holds this text")
    parser.add_argument("--list", action="store_true", help="list the families and stop")
    parser.add_argument("--json", type=new_file, help="also write the cases to this file")
    parser.add_argument("--failures", action="store_true", help="print only what is not ok")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(families()))
        return 0
    if not args.folder.is_dir():
        print(
            f"{args.folder}: no such folder; give a folder that holds MANIFEST.md and the case folders", file=sys.stderr
        )
        return 2
    from paddlemix.utils.device import tune_cpu

    tune_cpu()
    begun, counts, seen = time.time(), Counter(), []
    for case in run(args.folder.resolve(), args.only):
        counts[case.status] += 1
        seen.append(asdict(case))
        if not args.failures or case.status != "ok":
            print(line(case), flush=True)
    if args.json:
        args.json.write_text(json.dumps(seen, indent=1), encoding="utf-8")
    if not seen:
        print(f"{args.folder}: no golden cases found", file=sys.stderr)
        return 2
    print(f"{counts['deviates']} deviate on purpose (docs/deviations.md); {time.time() - begun:.0f} s")
    print(f"{counts['ok']} passed, {counts['fail']} failed, {counts['skipped']} skipped")
    return 1 if counts["fail"] else 0


if __name__ == "__main__":
    sys.exit(main())
