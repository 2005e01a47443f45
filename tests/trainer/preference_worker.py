"""One process of a preference run on the rows that TRL is compared on: ``preference_worker.py OUTPUT``."""

import json
import sys
from pathlib import Path

import paddle

sys.path[0] = str(Path(__file__).resolve().parents[2])

from paddlemix.trainer.preference import PreferenceTrainer  # noqa: E402 - after the path
from tests.trainer import preference_kit as kit  # noqa: E402

NAMES = ("loss", "rewards/chosen", "rewards/margins", "logps/rejected")


def main(output: str) -> None:
    folder = Path(output)
    told = {}
    for name in ("live", "kept"):
        made = kit.trainer(
            "rpo", folder / name, PreferenceTrainer, precompute_ref_log_probs=name == "kept", rpo_alpha=0.0
        )
        made.train()
        told[name] = {key: [entry[key] for entry in kit.logged(made)] for key in NAMES}
        if name == "live":
            told["evaluated"] = made.evaluate()
    if paddle.distributed.get_rank() == 0:
        (folder / "told.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])

    from paddlemix.trainer.ranks import leave_in_order

    leave_in_order(paddle.distributed.get_world_size())  # as a run does at its end
