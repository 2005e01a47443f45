# SPDX-License-Identifier: Apache-2.0
"""First stage: images and captions. The projector alone; everything with ``tune_entire_model``, as MV-LLaVA has it.

    paddlemix pretrain CONFIG.json [--key value ...]

Keys, exit codes and resuming are those of paddlemix sft; the template is "plain" unless the
settings name another one. The result is a whole model, with mm_projector.safetensors beside it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run by its path: imports begin at the repository, not beside this file
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from paddlemix.settings.run.loader import load_settings
from paddlemix.utils import device, early_stop, env
from paddlemix.utils.entry_point import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Read the settings, then train the projector."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    with early_stop.ending_early():
        settings = load_settings(argv)
        env.check_launch()
        device.before_paddle(settings.training.device)
        from paddlemix.trainer.run import pretrain

        return pretrain(settings).exit_code


if __name__ == "__main__":
    sys.exit(main())
