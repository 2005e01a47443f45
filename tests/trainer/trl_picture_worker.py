"""Ten DPO steps of TRL's trainer on transformers' LLaVA with images: ``trl_picture_worker.py FOLDER``.

FOLDER has the model in llava-hf's form (``hf``) and the rows (``rows.npz``); losses, measures and gradients of every
step are written to FOLDER/trl.npz. The ids and pixels are ours, so that the model, the loss and the steps are compared.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoProcessor, LlavaForConditionalGeneration
from trl import DPOConfig, DPOTrainer

sys.path[0] = str(Path(__file__).resolve().parent)
import preference_rows as shared  # noqa: E402 - after the path
from trl_worker import Kept  # noqa: E402


def collator(rows):
    def collate(examples):
        numbers = [int(example["prompt"]) for example in examples]
        every = [(number, name) for name in ("chosen", "rejected") for number in numbers]
        ids = [rows[f"{number}/{name}"] for number, name in every]
        length = max(map(len, ids))
        found = {name: torch.zeros(len(ids), length, dtype=torch.long) for name in ("input_ids", "attention_mask")}
        found["completion_mask"] = torch.zeros(len(ids), length, dtype=torch.long)
        for line, ((number, name), row) in enumerate(zip(every, ids, strict=True)):
            found["input_ids"][line, : len(row)] = torch.tensor(row)
            found["attention_mask"][line, : len(row)] = 1
            answer = int(rows[f"{number}/{name} answer"])
            found["completion_mask"][line, len(row) - answer : len(row)] = 1
        pixels = [rows[f"{number}/pixels"] for number, _ in every if f"{number}/pixels" in rows]
        if pixels:
            found["pixel_values"] = torch.tensor(np.concatenate(pixels))
        return found

    return collate


def main(place: str) -> None:
    torch.set_num_threads(1)
    folder, kept = Path(place), Kept()
    rows = dict(np.load(folder / "rows.npz"))
    policy, reference = (
        LlavaForConditionalGeneration.from_pretrained(folder / "hf", dtype=torch.float32) for _ in range(2)
    )
    for name, value in policy.named_parameters():
        value.requires_grad = "vision_tower" not in name
    args = DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=shared.BATCH, num_train_epochs=1,
        learning_rate=shared.RATE, lr_scheduler_type="constant", adam_epsilon=shared.EPSILON, max_grad_norm=0.0,
        weight_decay=0.0, logging_steps=1, save_strategy="no", report_to=[], bf16=False, use_cpu=True, seed=1,
        gradient_checkpointing=False, max_length=None, disable_tqdm=True, train_sampling_strategy="sequential",
        beta=shared.LOSSES["sigmoid"]["beta"],
    )  # fmt: skip
    data = [
        {"images": [0], "prompt": str(number), "chosen": "a", "rejected": "b"} for number in range(len(shared.pairs()))
    ]
    DPOTrainer(
        model=policy, ref_model=reference, args=args, train_dataset=Dataset.from_list(data), callbacks=[kept],
        processing_class=AutoProcessor.from_pretrained(folder / "hf"), data_collator=collator(rows),
    ).train()  # fmt: skip
    assert len(kept.gradients) == len(kept.logs) == shared.STEPS
    arrays = {f"{step}/{name}": value for step, found in enumerate(kept.gradients) for name, value in found.items()}
    np.savez(folder / "trl.npz", logs=json.dumps(kept.logs), **arrays)


if __name__ == "__main__":
    main(sys.argv[1])
