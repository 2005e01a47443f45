# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a LLaVA model, whole or with LoRA, from one JSON file.

    paddlemix sft CONFIG.json [--key value ...]
    python -m paddle.distributed.launch --devices 0,1 paddlemix/tools/supervised_finetune.py CONFIG.json

On npus the launcher of paddle 3.0 needs PADDLE_XCCL_BACKEND=npu, which config/npu/env.sh, train.sh and launch.sh set.

The same command goes on from the newest checkpoint in output_dir. Exit code 0; 2 when the settings, the data or a
model folder are wrong (nothing is written); 1 when the training cannot go on; 75 when a signal ended it after saving.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.settings.run.loader import load_settings
from paddlemix.utils import device, early_stop, env
from paddlemix.utils.entry_point import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings, then train."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    with early_stop.ending_early():
        settings = load_settings(argv)
        env.check_launch()
        device.before_paddle(settings.training.device)
        from paddlemix.trainer.run import finetune

        return finetune(settings).exit_code


if __name__ == "__main__":
    sys.exit(main())
