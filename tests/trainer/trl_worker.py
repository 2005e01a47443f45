"""Ten steps of TRL's own trainers, run by an interpreter with torch and trl: ``trl_worker.py OUTPUT CASE ...``.

Writes losses, measures and gradients of every step as OUTPUT/CASE.npz. ``trl_worker.py tests/data/trl/preference.json``
writes the losses, the measures and sketches of the gradients of all cases: the numbers that are kept.
"""

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

sys.path[0] = str(Path(__file__).resolve().parent)
import preference_rows as shared  # noqa: E402 - after the path


class Kept(TrainerCallback):
    def __init__(self):
        self.gradients, self.logs = [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        found = {name: value.grad.numpy().copy() for name, value in model.named_parameters() if value.grad is not None}
        self.gradients.append(found)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self.logs.append({name: value for name, value in logs.items() if isinstance(value, int | float)})


def folder(place: Path) -> Path:
    config = LlamaConfig(
        vocab_size=shared.VOCABULARY, hidden_size=shared.WIDTH, intermediate_size=shared.INNER,
        num_hidden_layers=shared.LAYERS, num_attention_heads=shared.HEADS, num_key_value_heads=shared.KEYS,
        max_position_embeddings=128, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=shared.END, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.load_state_dict({name: torch.tensor(value) for name, value in shared.weights().items()}, strict=True)
    model.save_pretrained(place)
    words = {f"w{number:02}": number for number in range(shared.VOCABULARY)}
    plain = Tokenizer(models.WordLevel(words, unk_token="w00"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="w00", pad_token="w00", eos_token=f"w{shared.END:02}"
    )
    tokenizer.save_pretrained(place)
    return place


def text(ids: list[int], end: bool = False) -> str:
    """Words with a space in front, so that prompt and answer do not run into each other."""
    return "".join(f" w{number:02}" for number in [*ids, *([shared.END] if end else [])])


def rows(case: str, end: bool) -> Dataset:
    if case == "kto":
        return Dataset.from_list([
            {"prompt": text(prompt), "completion": text(answer, end), "label": label}
            for prompt, answer, label in shared.singles()
        ])  # fmt: skip
    return Dataset.from_list([
        {"prompt": text(prompt), "chosen": text(chosen, end), "rejected": text(rejected, end)}
        for prompt, chosen, rejected in shared.pairs()
    ])  # fmt: skip


def trainer_of(case: str, model: Path, output: str, kept: Kept):
    keys = dict(shared.LOSSES[case])
    common = dict(
        output_dir=output, per_device_train_batch_size=shared.rows_a_step(case), num_train_epochs=1,
        learning_rate=shared.RATE, lr_scheduler_type="constant", adam_epsilon=shared.EPSILON, max_grad_norm=0.0,
        weight_decay=0.0, logging_steps=1, save_strategy="no", report_to=[], bf16=False, use_cpu=True, seed=1,
        gradient_checkpointing=False, max_length=128, disable_tqdm=True, train_sampling_strategy="sequential",
        beta=keys.pop("beta"),
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    policy = LlamaForCausalLM.from_pretrained(model, dtype=torch.float32)
    policy.config._name_or_path = str(model)
    data = rows(case, end=case not in ("simpo", "orpo"))
    given = dict(model=policy, train_dataset=data, processing_class=tokenizer, callbacks=[kept])
    if case in ("sigmoid", "hinge", "ipo", "rpo"):
        from trl import DPOConfig, DPOTrainer

        alpha = keys.pop("rpo_alpha", None)
        kind = dict(loss_type=case) if alpha is None else dict(loss_type=["sigmoid", "sft"], loss_weights=[1.0, alpha])
        return DPOTrainer(ref_model=LlamaForCausalLM.from_pretrained(model, dtype=torch.float32),
                          args=DPOConfig(**common, **kind), **given)  # fmt: skip
    if case == "kto":
        from trl import KTOConfig, KTOTrainer

        return KTOTrainer(ref_model=LlamaForCausalLM.from_pretrained(model, dtype=torch.float32),
                          args=KTOConfig(**common, **keys), **given)  # fmt: skip
    if case == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer(args=CPOConfig(**common, **keys, loss_type="simpo", cpo_alpha=0.0), **given)
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    return ORPOTrainer(args=ORPOConfig(**common, **keys), **given)


def steps(case: str, model: Path, place: str) -> tuple[list[dict[str, float]], list[dict[str, np.ndarray]]]:
    kept = Kept()
    trainer_of(case, model, str(Path(place) / case), kept).train()
    assert len(kept.gradients) == len(kept.logs) == shared.STEPS, (case, len(kept.gradients), len(kept.logs))
    return kept.logs, kept.gradients


def sketched(logs: list[dict[str, float]], gradients: list[dict[str, np.ndarray]]) -> dict[str, object]:
    names = [name for name in logs[0] if "rewards/" in name or "logps/" in name or name in ("loss", "kl", "nll_loss")]
    measures = {name: [float(f"{entry.get(name, float('nan')):.8g}") for entry in logs] for name in names}
    sketches = [shared.sketch(found) for found in gradients]
    return {
        "measures": measures,
        "gradients": {
            name: [[float(f"{number:.6g}") for number in found[name]] for found in sketches] for name in sketches[0]
        },
    }


def main(output: str, *cases: str) -> None:
    torch.set_num_threads(1)
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    with tempfile.TemporaryDirectory() as place:
        model = folder(Path(place) / "model")
        if output.endswith(".json"):
            found = {case: sketched(*steps(case, model, place)) for case in shared.LOSSES}
            lines = ",\n".join(f"{json.dumps(case)}: {json.dumps(numbers)}" for case, numbers in found.items())
            Path(output).write_text(f'{{"versions": {json.dumps(versions)},\n{lines}}}\n')
            return
        for case in cases:
            logs, gradients = steps(case, model, place)
            arrays = {f"{step}/{name}": value for step, found in enumerate(gradients) for name, value in found.items()}
            np.savez(Path(output) / f"{case}.npz", logs=json.dumps(logs), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
