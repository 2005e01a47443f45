# SPDX-License-Identifier: Apache-2.0
"""Every key of a training run: name, default, meaning, and what happens to it. One flat JSON, in groups.

The names and defaults are those of PaddleMIX's ModelArgument, DataArgument and GenerateArgument and of PaddleNLP
3.0.0b4's TrainingArguments; the keys that LLaVA's own train.py has are there too, under the same names. A key either
acts, or is accepted only at its default (``fixed`` gives the reason). ``None`` means: as the checkpoint says.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from paddlemix.settings.run import checks
from paddlemix.settings.run.inputs import NO_EFFECT, OWN_FLOW, DataGroup, GenerateGroup, ModelGroup
from paddlemix.settings.run.keys import Known, SettingValue, key, known_keys, path_key
from paddlemix.settings.run.preference import PreferenceGroup

_FLAT_GRADIENTS = "in one buffer one rule holds for all: weight decay would reach the norms, mm_projector_lr be lost"
_NO_PARALLEL = "only tensor_parallel_degree, sep_parallel_degree and sharding divide a model or its rows"
_NO_EXPERTS = "the model has no experts"
_OWN_CHECKPOINTS = "checkpoints are written and read by paddlemix (complete or absent, with checksums)"
_EVALUATION = "evaluation computes in the precision of the training"
_NO_QLORA = (
    "paddle has no operators that train on weights of 4 or 8 bits on the CPU or the NPU, so QLoRA is not built; leave "
    'the key out and write "lora": true with "recompute": true, on cards also "bf16": true and "fp16_opt_level": "O2", '
    'or divide the weights with "sharding": "stage3"'
)
_OWN_DATA = "the data set is read row by row, with every column the model needs"
_CLIP_ONLY = "it belongs to the trainers of CLIP and EVA; use lr_scheduler_type and warmup_ratio"
_INTERVAL = ("no", "steps", "epoch")


@dataclass(frozen=True)
class TrainingGroup:
    """The run: batches, steps, rates, precision, files, devices."""

    # Output and flow
    output_dir: str | None = path_key(None, "Folder of checkpoints and of the result.", needed=True)
    overwrite_output_dir: bool = key(False, "Start anew although output_dir holds checkpoints.")
    do_train: bool = key(False, "Train.")
    do_eval: bool = key(False, "Evaluate the loss on the eval data.")
    dry_run: bool = key(False, "Say what the run would do and need, and end before a weight is read.")
    do_predict: bool = key(False, "Answer the test rows of dataset at the end: generated_predictions.jsonl.")
    max_new_tokens: int = key(512, "Longest answer of do_predict in tokens.", low=1, high=2**20)
    do_export: bool = key(False, "Export.", fixed=OWN_FLOW + "; use deploy/llava/export_model.py")
    resume_from_checkpoint: str | None = path_key(
        None, "Checkpoint folder to go on from. null: the newest in output_dir."
    )
    seed: int = key(42, "Seed of weights, order and dropout.", low=0, high=2**32 - 1)
    run_name: str | None = key(None, "Name of the run for the loggers of report_to.")
    # Batches and steps
    per_device_train_batch_size: int = key(8, "Rows per device and micro-batch.", low=1)
    per_device_eval_batch_size: int = key(8, "Rows per device in evaluation.", low=1)
    gradient_accumulation_steps: int = key(1, "Micro-batches per optimizer step.", low=1)
    eval_accumulation_steps: int | None = key(None, "Evaluation batches before results leave the device.", low=1)
    num_train_epochs: float = key(1.0, "Passes over the data.", above=0)
    max_steps: int = key(-1, "Optimizer steps; -1: num_train_epochs decides.", low=-1)
    max_evaluate_steps: int = key(-1, "Evaluation batches; -1: all.", low=-1)
    eval_generate: int = key(0, "Rows of the eval data that the model answers, in words, at each evaluation.", low=0)
    eval_generate_tokens: int = key(64, "Tokens that such an answer has at most.", low=1)
    # Optimizer and schedule
    learning_rate: float = key(5e-5, "Highest learning rate.", low=0)
    mm_projector_lr: float | None = key(None, "Learning rate of the projector. null: learning_rate.", low=0)
    vision_tower_lr: float | None = key(None, "Learning rate of the vision tower. null: learning_rate.", low=0)
    weight_decay: float = key(0.0, "Weight decay (not on norms and biases).", low=0)
    adam_beta1: float = key(0.9, "AdamW.", low=0, high=0.999999999)
    adam_beta2: float = key(0.999, "AdamW.", low=0, high=0.999999999)
    adam_epsilon: float = key(1e-8, "AdamW.", above=0)
    loss_jump: float = key(100.0, "A step whose loss is so many times that of the steps before is warned of; 0: never.",
                           low=0)  # fmt: skip
    stop_at_loss_jump: bool = key(False, "End the run before the update of such a step.")
    max_grad_norm: float = key(1.0, "Gradients are scaled down to this norm; 0: never.", low=0)
    optim: str = key("adamw", "Optimizer.", fixed="AdamW is the only optimizer", also=("adamw_torch",))
    lr_scheduler_type: str = key(
        "linear", "Schedule.", choices=("linear", "cosine", "constant", "constant_with_warmup", "polynomial")
    )
    warmup_ratio: float = key(0.0, "Part of all steps with a rising rate.", low=0, high=1)
    warmup_steps: int = key(0, "Steps with a rising rate; wins over warmup_ratio.", low=0)
    num_cycles: float = key(0.5, "Waves of the cosine schedule.", above=0)
    lr_end: float = key(1e-7, "Last rate of the polynomial schedule.", low=0)
    power: float = key(1.0, "Power of the polynomial schedule.", above=0)
    warmup_start_lr: float = key(1e-6, "Schedule.", fixed=_CLIP_ONLY)
    eta_min: float = key(1e-5, "Schedule.", fixed=_CLIP_ONLY)
    lr_scheduler_name: str = key("CosineDecayWithWarmup", "Schedule.", fixed=_CLIP_ONLY)
    # Log, save, evaluate
    logging_dir: str | None = path_key(None, "Folder of the loggers of report_to. null: output_dir/runs/...")
    logging_strategy: str = key("steps", "When losses are logged.", choices=_INTERVAL)
    logging_first_step: bool = key(False, "Log the first step too.")
    logging_steps: int = key(500, "Optimizer steps between two log lines.", low=1)
    log_on_each_node: bool = key(True, "Log once per node, not once per run.")
    save_strategy: str = key("steps", "When checkpoints are saved.", choices=_INTERVAL)
    save_steps: int = key(500, "Optimizer steps between two checkpoints.", low=1)
    save_total_limit: int | None = key(None, "Checkpoints that are kept. null: all.", low=1)
    save_on_each_node: bool = key(False, "Checkpoints.", fixed="one copy is written, to a folder that all nodes see")
    evaluation_strategy: str = key("no", "When the eval data is used during training.", choices=_INTERVAL)
    eval_steps: int | None = key(None, "Optimizer steps between two evaluations. null: logging_steps.", low=1)
    eval_benchmarks: tuple[dict, ...] | None = key(
        None,
        'Benchmarks that are asked at each evaluation: [{"name": "pope", "data": FOLDER, "limit": 200}], also with '
        "label, split, prompts, image_folder, convention and max_new_tokens, as in paddlemix eval.",
        check=checks.benchmarks,
    )
    minimum_eval_times: int | None = key(None, "Evaluations that a run has at least.", low=1)
    prediction_loss_only: bool = key(False, "Evaluation.", fixed="evaluation always gives the loss only", also=(True,))
    load_best_model_at_end: bool = key(False, "The result is the checkpoint that was best in evaluation.")
    metric_for_best_model: str | None = key(
        None, "Measure of best: loss, rouge_l of eval_generate, pope_accuracy of eval_benchmarks. null: loss."
    )
    greater_is_better: bool | None = key(None, "Direction of metric_for_best_model. null: false for a loss.")
    ignore_data_skip: bool = key(False, "On resume begin with the first row again.")
    disable_tqdm: bool | None = key(None, "No progress bar. null: a bar on a terminal only.")
    report_to: tuple[str, ...] | None = key(
        None, "Programs that draw the curves: tensorboard, visualdl, wandb, swanlab.", check=checks.reporters
    )
    wandb_api_key: str | None = key(None, "Key of Weights & Biases.")
    wandb_http_proxy: str | None = key(None, "Proxy of Weights & Biases.")
    metrics_output_path: str | None = path_key(None, "Folder that gets a copy of the metrics.")
    benchmark: bool = key(False, "Print samples per second and peak memory at the end.")
    profiler_options: str | None = key(None, "Profiler.", fixed=OWN_FLOW)
    skip_memory_metrics: bool = key(True, "Do not measure memory at the end of each stage.")
    skip_profile_timer: bool = key(True, "Do not log the timers of each stage.")
    count_trained_tokens: bool = key(False, "Count tokens.", fixed="tokens are always counted", also=(True,))
    pad_token_id: int = key(0, "Padding id.", fixed="the tokenizer of the model knows it")
    # Precision
    bf16: bool = key(False, "Compute in bfloat16.")
    fp16: bool = key(False, "Compute in float16.")
    fp16_opt_level: str = key("O1", "O1: cast per operator; O2: weights in bf16 or fp16.", choices=("O0", "O1", "O2"))
    amp_master_grad: bool = key(False, "Keep gradients in float32 with O2.")
    bf16_full_eval: bool = key(False, "Evaluate in bfloat16.", fixed=_EVALUATION)
    fp16_full_eval: bool = key(False, "Evaluate in float16.", fixed=_EVALUATION)
    amp_custom_black_list: tuple[str, ...] | None = key(None, "Operators that stay in float32.")
    amp_custom_white_list: tuple[str, ...] | None = key(None, "Operators that are always cast.")
    scale_loss: float = key(32768.0, "First loss scale of fp16.", above=0)
    # Memory
    recompute: bool = key(False, "Compute activations again in the backward pass instead of keeping them.")
    use_fused_head_and_loss_fn: bool | None = key(
        None, "Head and loss of 1024 positions at a time, never all logits. null: unless sharding is stage3."
    )
    refined_recompute: str = key("", "Recompute of single operators.", fixed="recompute is per layer")
    flatten_param_grads: bool = key(False, "One buffer for all gradients (NPU).", fixed=_FLAT_GRADIENTS)
    offload_optim: bool = key(False, "Optimizer state lives in host memory between steps.")
    release_grads: bool | None = key(
        None, "Free gradients after each step. null: unless sharding or tensor parallel divides them."
    )
    # Devices
    device: str | None = key(None, "cpu, gpu or npu. null: npu if there is one, else gpu, else cpu.",
                             choices=("cpu", "gpu", "npu"))  # fmt: skip
    no_cuda: bool = key(False, "Never use CUDA.", fixed='write "device": "cpu"')
    local_rank: int = key(-1, "Rank.", fixed="the launcher sets it")
    sharding: str = key("", "stage1, stage2 or stage3, with offload if wanted.", check=checks.sharding_words)
    sharding_degree: int = key(-1, "Old name.", fixed="use sharding_parallel_degree")
    sharding_parallel_degree: int = key(-1, "Devices that share one copy of the state; -1: all.", low=-1)
    sharding_parallel_config: str = key("", "Options of the sharding.", check=checks.sharding_options)
    sharding_comm_buffer_size_MB: int = key(-1, "Sharding buffer in MB; -1: default.", low=-1)  # noqa: N815 - given name
    data_parallel_config: str = key("", "Options of data parallel training.", check=checks.data_parallel_options)
    sharding_parallel_mesh_dimension: str = key("dp", "Mesh.", fixed="it belongs to auto parallel training")
    tensor_parallel_degree: int = key(-1, "Devices that hold one model together, in slices; -1 or 1: none.",
                                      low=-1, check=checks.not_zero)  # fmt: skip
    pipeline_parallel_degree: int = key(-1, "Pipeline parallel.", fixed=_NO_PARALLEL, also=(1,))
    sep_parallel_degree: int = key(-1, "Devices that share the places of long rows; -1 or 1: none.",
                                   low=-1, check=checks.not_zero)  # fmt: skip
    context_parallel_degree: int = key(-1, "Context parallel.", fixed=_NO_PARALLEL, also=(1,))
    split_inputs_sequence_dim: bool = key(True, "Sequence parallel.", fixed=_NO_PARALLEL)
    sequence_parallel: bool = key(False, "Sequence parallel.", fixed=_NO_PARALLEL)
    fuse_sequence_parallel_allreduce: bool = key(False, "Sequence parallel.", fixed=_NO_PARALLEL)
    sequence_parallel_config: str = key("", "Sequence parallel.", fixed=_NO_PARALLEL)
    tensor_parallel_config: str = key("", "Tensor parallel.", fixed=_NO_PARALLEL)
    pipeline_parallel_config: str = key("", "Pipeline parallel.", fixed=_NO_PARALLEL)
    hybrid_parallel_topo_order: str | None = key(None, "Order of the parallel groups.", fixed=_NO_PARALLEL)
    expert_parallel_degree: int = key(-1, "Experts.", fixed=_NO_EXPERTS, also=(1,))
    expert_tensor_parallel_degree: int = key(-1, "Experts.", fixed=_NO_EXPERTS, also=(1,))
    use_expert_parallel: bool = key(False, "Experts.", fixed=_NO_EXPERTS)
    expert_max_capacity: int = key(2**32, "Experts.", fixed=_NO_EXPERTS)
    expert_min_capacity: int = key(1, "Experts.", fixed=_NO_EXPERTS)
    enable_auto_parallel: bool = key(False, "Auto parallel.", fixed=_NO_PARALLEL)
    auto_parallel_resume_form_hybrid_parallel: bool = key(False, "Auto parallel.", fixed=_NO_PARALLEL)
    to_static: bool = key(False, "Static graph.", fixed=OWN_FLOW)
    ddp_find_unused_parameters: bool | None = key(None, "Data parallel.", fixed="frozen parts are known beforehand")
    # Loader
    dataloader_num_workers: int = key(0, "Processes that prepare batches; 0: the main process.", low=0, high=256)
    dataloader_timeout: float = key(
        600.0, "Seconds without progress after which the row that a loader process reads is named and the run ends.",
        above=0,
    )  # fmt: skip
    dataloader_drop_last: bool = key(False, "Drop the last incomplete batch.")
    group_by_modality_length: bool = key(False, "Batches of like length, with images or without, as LLaVA does.")
    group_by_length: bool = key(False, "Batches of like length.")
    skip_data_intervals: tuple[tuple[int, int], ...] | None = key(
        None, "Steps whose data is skipped, [first, last].", check=checks.pairs
    )
    distributed_dataloader: bool = key(False, "Loader.", fixed="every rank reads its own rows")
    remove_unused_columns: bool = key(True, "Loader.", fixed=_OWN_DATA, also=(False,))
    lazy_data_processing: bool = key(True, "Loader.", fixed=_OWN_DATA)
    label_names: tuple[str, ...] | None = key(None, "Loader.", fixed=_OWN_DATA)
    past_index: int = key(-1, "Loader.", fixed=NO_EFFECT)
    # Checkpoints
    unified_checkpoint: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    unified_checkpoint_config: str = key("", "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    use_async_save: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    output_signal_dir: str | None = key(None, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    ordered_save_group_size: int = key(0, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    ckpt_quant_stage: str = key("O0", "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    save_sharded_model: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    load_sharded_model: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    save_sharding_stage1_model_include_freeze_params: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    ignore_load_lr_and_optim: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    ignore_save_lr_and_optim: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    force_reshard_pp: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    pdc_download_ckpt: bool = key(False, "Checkpoints.", fixed=_OWN_CHECKPOINTS)
    pdc_download_timeout: int = key(300, "Checkpoints.", fixed=_OWN_CHECKPOINTS)

    @property
    def fuses_head_and_loss(self) -> bool:
        """Whether head and loss are computed by portions. Stage3 has the head at hand while its own layer runs only."""
        asked = self.use_fused_head_and_loss_fn
        return "stage3" not in self.sharding if asked is None else asked

    @property
    def releases_gradients(self) -> bool:
        """Whether gradients are freed after a step. Those of sharding and tensor parallel may lie in shared buffers."""
        asked = self.release_grads
        return not self.sharding and self.tensor_parallel_degree <= 1 if asked is None else asked


@dataclass(frozen=True)
class TrainingSettings:
    """A whole run. ``notes`` are lines for the person: what a given key turned into; ``given`` the keys written."""

    model: ModelGroup = field(default_factory=ModelGroup)
    data: DataGroup = field(default_factory=DataGroup)
    generate: GenerateGroup = field(default_factory=GenerateGroup)
    training: TrainingGroup = field(default_factory=TrainingGroup)
    preference: PreferenceGroup = field(default_factory=PreferenceGroup)
    notes: tuple[str, ...] = ()
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def with_changes(self, **changes: SettingValue) -> "TrainingSettings":
        """A copy with some keys replaced, named as in the JSON: ``settings.with_changes(max_steps=3)``."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in changes.items():
            groups.setdefault(KNOWN[name].group, {})[name] = value
        parts = {group: dataclasses.replace(getattr(self, group), **values) for group, values in groups.items()}
        return dataclasses.replace(self, **parts)


GROUPS = {
    "model": ModelGroup, "data": DataGroup, "generate": GenerateGroup, "training": TrainingGroup,
    "preference": PreferenceGroup,
}  # fmt: skip

KNOWN: dict[str, Known] = {
    name: known for group, kind in GROUPS.items() for name, known in known_keys(group, kind).items()
}
"""Every key by its name. The names of the groups do not overlap."""

OWN_TRAINING_KEYS = (
    "mm_projector_lr", "vision_tower_lr", "group_by_modality_length", "group_by_length", "benchmark",
    "dataloader_timeout", "profiler_options", "warmup_start_lr", "eta_min", "lr_scheduler_name",
    "loss_jump", "stop_at_loss_jump", "use_fused_head_and_loss_fn", "dry_run", "eval_generate",
    "eval_generate_tokens", "eval_benchmarks", "max_new_tokens",
)  # fmt: skip
"""Keys of ``TrainingGroup`` that PaddleNLP's TrainingArguments does not have."""

ALIASES = {
    "version": "template",
    "model_base": "base",
    "model_max_length": "max_length",
    "lora_enable": "lora",
    "lora_r": "lora_rank",
    "lora_weight_path": "lora_path",
    "use_rslora": "rslora",
    "dora": "use_dora",
    "pissa_init": "pissa",
    "loraplus_lr_ratio": "lora_plus_scale",
    "lorap_lr_ratio": "lora_plus_scale",
    "target_modules": "lora_target_modules",
    "additional_target": "modules_to_save",
    "gradient_checkpointing": "recompute",
}
"""Names that LLaVA's train.py, peft, LLaMA-Factory and ms-swift use for keys that we call as PaddleMIX does."""

FOREIGN = {
    "deepspeed": 'DeepSpeed is not used; write "sharding": "stage2" or "stage3"',
    **dict.fromkeys(
        (
            "bits",
            "double_quant",
            "quant_type",
            "load_in_4bit",
            "load_in_8bit",
            "qlora",
            "quantization_bit",
            "quantization_method",
            "quantization_type",
            "double_quantization",
            "quant_bits",
            "quant_method",
            "bnb_4bit_quant_type",
            "bnb_4bit_compute_dtype",
            "bnb_4bit_use_double_quant",
            "weight_quantize_algo",
            "qlora_weight_blocksize",
            "qlora_weight_double_quant",
            "qlora_weight_double_quant_block_size",
        ),
        _NO_QLORA,
    ),
    "init_lora_weights": 'adapters begin as peft\'s default has it; for "pissa" write "pissa": true',
    "init_weights": 'adapters begin as peft\'s default has it; for "pissa" write "pissa": true',
    "pissa_convert": "adapters stand on the base that they were given, so no conversion is needed; leave the key out",
    "lora_target": 'write "lora_target_modules", a list',
    "loraplus_lr_embedding": 'the embeddings train at learning_rate with "modules_to_save"; leave the key out',
    "lora_bias": "adapters have no bias",
    "freeze_backbone": 'write "tune_mm_mlp_adapter": true, or name the parts in freeze_include',
    "mpt_attn_impl": "MPT models are not supported",
    "tf32": "the precision is chosen by bf16 and fp16",
    "meta_path": 'write "data_path"; it takes InternVL\'s meta file, too',
    "cache_dir": "the environment variable PPMIX_HOME names the cache",
    "lazy_preprocess": "rows are always read when they are needed; leave the key out",
    "is_multimodal": "it follows from the data; leave the key out",
}
"""Keys of related projects that are not ours: what to do instead."""
