"""One process of a run on synthetic rows, and of its continuation: ``dist_worker.py OUTPUT [key=value ...]``."""

import json
import sys
from pathlib import Path

import numpy as np
import paddle

sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.datasets.sampler import shuffled  # noqa: E402 - after the path
from paddlemix.utils.errors import DataError  # noqa: E402
from tests.trainer.trainer_kit import Rows, losses, make_trainer, settings, weights  # noqa: E402


def train(output: Path, keys: dict, resume: Path | None) -> dict:
    trainer = make_trainer(settings(output, **keys), rows=Rows(12, equal=True), eval_rows=Rows(5))
    trainer.train(resume)
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return {
        "losses": losses(trainer),
        "norms": norms,
        "eval_loss": trainer.evaluate()["eval_loss"],
        "weights": weights(trainer.model),
    }


def refused(output: Path, keys: dict) -> list:
    """What a run tells in which only the second process meets a row that it cannot read, in the third step."""
    row = shuffled(12, 42)(0)[2 * 2 * 2 + 2]
    trainer = make_trainer(settings(output, **{**keys, "save_strategy": "no"}), rows=Rows(12, equal=True, refused=row))
    try:
        trainer.train()
    except DataError as error:
        return [str(error), f"synthetic record {row}: no such image"]
    return []


def main(output: str, *pairs: str) -> None:
    folder = Path(output)
    keys = {name: json.loads(value) for name, value in (pair.split("=") for pair in pairs)}
    straight = train(folder, keys, None)
    resumed = train(folder, keys, folder / "checkpoint-4")
    equal = all(np.array_equal(straight["weights"][name], resumed["weights"][name]) for name in straight["weights"])
    trained = straight.pop("weights")
    straight["resumed"] = resumed["losses"]
    straight["refused"] = refused(folder / "refused", keys)
    if paddle.distributed.get_rank() == 0:  # one writer: two at once leave a file that no reader takes
        np.savez(folder / f"weights-{equal}.npz", **trained)
        (folder / "told.json").write_text(json.dumps(straight))


if __name__ == "__main__":
    main(*sys.argv[1:])

    from paddlemix.trainer.ranks import leave_in_order

    leave_in_order(paddle.distributed.get_world_size())  # as a run does at its end
