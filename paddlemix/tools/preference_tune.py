# SPDX-License-Identifier: Apache-2.0
"""Train a LLaVA model to prefer one answer to another (DPO, IPO, SimPO, ORPO, KTO), from one JSON file.

    paddlemix preference_tune CONFIG.json [--key value ...]
    python -m paddle.distributed.launch --devices 0,1 paddlemix/tools/preference_tune.py CONFIG.json

Keys, exit codes and resuming are those of paddlemix sft; loss_type chooses the loss (sigmoid, that of DPO). Dropout in
front of the adapters is off unless the settings say otherwise. docs/preference.md tells of rows and losses.
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
        settings = load_settings(argv, loss_type="sigmoid", lora_dropout=0.0)
        env.check_launch()
        device.before_paddle(settings.training.device)
        from paddlemix.trainer.run import preference_tune

        return preference_tune(settings).exit_code


if __name__ == "__main__":
    sys.exit(main())
