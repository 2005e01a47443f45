# SPDX-License-Identifier: Apache-2.0
"""One process of a run in which the second one fails: ``ranks_worker.py killed|stopped|other OUTPUT``."""

import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.trainer import ranks  # noqa: E402 - after the path
from paddlemix.trainer.callbacks import TrainerCallback  # noqa: E402
from paddlemix.utils.errors import ConfigError  # noqa: E402
from tests.trainer.trainer_kit import Rows, make_trainer, settings  # noqa: E402

SIGNALS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


class Failing(TrainerCallback):
    """Sends the second process a signal in its third step."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 2 and args.process_index == 1 and self.how in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.how])


def main(how: str, output: str) -> int:
    second = os.environ["PADDLE_TRAINER_ID"] == "1"
    run = settings(Path(output), learning_rate=2e-3 if how == "other" and second else 1e-3)
    trainer = make_trainer(run, rows=Rows(24, equal=True))
    ranks.SILENT = 4.0
    try:
        ranks.require_alike({"learning_rate": run.training.learning_rate, **ranks.versions()}, 2)
        trainer.require_alike()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    trainer.add_callback(Failing(how))
    with ranks.RankWatch(Path(output), trainer.args.process_index, 2, lambda: trainer.state.global_step).running():
        trainer.train()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
