"""One process of a data parallel run on synthetic rows: ``dist_worker.py OUTPUT RESUME|- [key=value ...]``."""

import json
import sys
from pathlib import Path

import numpy as np

sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings, weights  # noqa: E402 - after the path


def main(output: str, resume: str, *pairs: str) -> None:
    keys = {name: json.loads(value) for name, value in (pair.split("=") for pair in pairs)}
    trainer = make_trainer(settings(Path(output), **keys), rows=Rows(12, equal=True), eval_rows=Rows(5))
    trainer.train(None if resume == "-" else resume)
    score = trainer.evaluate()["eval_loss"]
    if trainer.is_world_process_zero():
        np.savez(Path(output) / "weights.npz", **weights(trainer.model))
        (Path(output) / "told.json").write_text(json.dumps({"losses": losses(trainer), "eval_loss": score}))


if __name__ == "__main__":
    main(*sys.argv[1:])
