# SPDX-License-Identifier: Apache-2.0
"""Whole runs on the tiny model of the fixture ``place``: their command lines, and how they are started."""

import json

from paddlemix.settings.run.loader import load_settings


def arguments(place, output, **changes):
    keys = {
        "model_name_or_path": place / "model",
        "data_path": place / "train.json",
        "image_folder": place,
        "output_dir": output,
        "do_train": "true",
        "device": "cpu",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        **changes,
    }
    return [part for name, value in keys.items() if value is not None for part in (f"--{name}", str(value))]


def go(place, output, **changes):
    from paddlemix.trainer.run import finetune

    return finetune(load_settings(arguments(place, output, **changes)))


def with_eval(place):
    parts = {name: [{"data_files": str(place / f"{name}.json")}] for name in ("train", "eval")}
    return dict(data_path=None, dataset=json.dumps(parts))
