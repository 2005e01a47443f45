# SPDX-License-Identifier: Apache-2.0
"""Keys of published config.json files that are read and then not used, each with its reason.

A key that stands neither here nor in the readers of ``config.py`` and ``tower.py`` is an error: what nobody
looked at may change the numbers.
"""

_TRAINED = "says how the weights were trained, not how they compute"
_GENERATION = "belongs to text generation, where the caller decides"
_BOOKKEEPING = "bookkeeping of the program that wrote the file"
_SPEED = "chooses a kernel or a parallel layout of another program; the numbers are the same"
_HEADS = "belongs to tasks with labels"
_TEXT_TOWER = "belongs to the text tower of CLIP"


def _table(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


ANYWHERE: dict[str, str] = {
    **_table(
        _BOOKKEEPING,
        "_name_or_path name_or_path architectures transformers_version paddlenlp_version paddle_version "
        "_from_model_config _commit_hash init_class class_name tokenizer_class processor_class "
        "task_specific_params finetuning_task torchscript return_dict output_hidden_states output_attentions "
        "prefix use_bfloat16 tf_legacy_loss _attn_implementation _attn_implementation_autoset "
        "attn_implementation _flash_attn_2_enabled download_hf_hub pruned_heads chunk_size_feed_forward "
        "classifier_dropout enable_recompute",
    ),
    **_table(
        _GENERATION,
        "use_cache max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty "
        "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores "
        "return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values "
        "exponential_decay_length_penalty suppress_tokens begin_suppress_tokens sep_token_id "
        "decoder_start_token_id use_last_token_for_generation is_decoder is_encoder_decoder "
        "cross_attention_hidden_size add_cross_attention tie_encoder_decoder num_choices",
    ),
    **_table(_HEADS, "id2label label2id num_labels problem_type"),
    **_table(
        _SPEED,
        "pretraining_tp use_recompute recompute recompute_granularity no_recompute_layers "
        "pp_recompute_interval recompute_use_reentrant use_flash_attention use_fused_rms_norm use_fused_rope "
        "use_fused_linear use_fused_dropout_add fused_linear tensor_parallel_degree tensor_parallel_rank "
        "tensor_parallel_output pipeline_parallel_degree sep_parallel_degree context_parallel_degree "
        "sequence_parallel virtual_pp_degree fuse_sequence_parallel_allreduce sharding_parallel_degree "
        "use_flash_attention_for_generation skip_recompute_ops enable_parallel_cross_entropy "
        "refined_recompute use_filtered_label_loss loss_subbatch_sequence_length use_unpadding seq_length "
        "long_sequence_strategy_type long_sequence_strategy_name long_sequence_init_args "
        "use_long_sequence_strategies immediate_clear_past_key_value lm_shift_labels",
    ),
    **_table(_TRAINED, "initializer_factor attention_dropout hidden_dropout hidden_dropout_prob"),
}
"""Ignored in every object of every file."""

LLAVA: dict[str, str] = {
    **_table(
        _TRAINED,
        "tune_mm_mlp_adapter freeze_mm_mlp_adapter mm_projector_lr mm_vision_tower_lr "
        "unfreeze_mm_vision_tower tune_mm_vision_resampler freeze_mm_vision_resampler tune_vision_tower "
        "tune_vit_pos_embedding tune_entire_model tune_vit_from_layer freeze_backbone pretrain_mm_mlp_adapter "
        "mm_tunable_parts pretrain_vision_tower vision_tower_lr use_pos_skipping pos_skipping_range delay_load "
        "vision_tower_pretrained",
    ),
    **_table(
        "belongs to an image mode (crop_split) that no published model uses",
        "image_crop_resolution image_split_resolution",
    ),
    **_table(
        "belongs to video models",
        "mm_spatial_pool_mode mm_spatial_pool_stride mm_spatial_pool_out_channels mm_newline_position "
        "add_time_instruction force_sample add_faster_video faster_token_stride frames_upbound",
    ),
}
"""Ignored in the config.json of LLaVA and PaddleMIX folders."""

LLAVA_HF: dict[str, str] = {
    **_table(
        "a token of the vocabulary stands for the image there; here its place is a number",
        "image_token_index image_token_id",
    ),
    **_table("the loss uses -100 always", "ignore_index"),
    **_table("the vocabulary size is in text_config", "vocab_size"),
    **_table("follows from the image settings", "image_seq_length"),
    **_table("belongs to the tokenizer", "pad_token_id bos_token_id eos_token_id"),
    **_table("the published models have it as the merge type tells", "use_image_newline_parameter"),
    **_table("belongs to the text model, which has its own entry", "tie_word_embeddings initializer_range"),
}
"""Ignored at the top of the config.json of llava-hf folders."""

VISION: dict[str, str] = {
    **_table(_TEXT_TOWER, "projection_dim vocab_size text_config text_config_dict logit_scale_init_value"),
    **_table("a vision tower has no such tokens", "bos_token_id eos_token_id pad_token_id tie_word_embeddings"),
    **_table(_TRAINED, "initializer_range dropout"),
}
"""Ignored in the configuration of every vision tower."""

PREPROCESSOR: dict[str, str] = {
    **_table(_BOOKKEEPING, "feature_extractor_type image_processor_type auto_processor _valid_processor_keys"),
    **_table("images are always turned into RGB", "do_convert_rgb"),
    **_table("tiles of a batch are never padded here", "do_pad"),
    **_table("has no influence on the pixels", "data_format input_data_format return_tensors device default_to_square"),
    **_table("the grid is read from config.json", "image_grid_pinpoints aspect_ratio_setting"),
}
"""Ignored in preprocessor_config.json."""
