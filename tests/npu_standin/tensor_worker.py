# SPDX-License-Identifier: Apache-2.0
"""One of the processes that train a model together: ``tensor_worker.py FOLDER`` runs the cases of FOLDER/cases.json."""

import json
import sys
from pathlib import Path


def main(folder: Path) -> None:
    """Every case is a list of command line arguments; the first process tells which fused operators were called."""
    import paddle

    from paddlemix.settings.run.loader import load_settings
    from paddlemix.trainer.run import finetune
    from tests.npu_standin.worker import Calls

    counted = {}
    for name, arguments in json.loads((folder / "cases.json").read_text(encoding="utf-8")).items():
        calls = Calls()
        calls.reset()
        finetune(load_settings(arguments))
        counted[name] = calls.read()
    if paddle.distributed.get_rank() == 0:
        told = {"calls": counted, "device": paddle.get_device()}
        (folder / "told.json").write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
