# SPDX-License-Identifier: Apache-2.0
"""The keys of a training run that say what goes into it and how it answers: the model, the rows, sample answers.

``training`` has all other keys and tells where names and defaults come from.
"""

from dataclasses import dataclass
from typing import Any

from paddlemix.settings.dense_connector import CONNECTORS
from paddlemix.settings.run import checks
from paddlemix.settings.run.keys import key, path_key

_NO_AISTUDIO = "models are read from local folders; nothing is sent to AI Studio"
NO_EFFECT = "it has no effect on LLaVA models, in PaddleMIX neither"
OWN_FLOW = "the training loop has no such mode"


@dataclass(frozen=True)
class ModelGroup:
    """Which weights are read, and which parts of them train."""

    model_name_or_path: str | None = path_key(None, "Folder or name of the model that is trained.", needed=True)
    base: str | None = path_key(None, "Base model, when model_name_or_path is an adapter or a projector.")
    strict_config: bool = key(False, "Unknown keys of the model's config.json are errors. false: one warning.")
    text_model_name_or_path: str | None = path_key(None, "Folder whose tokenizer is used instead of the model's own.")
    use_flash_attention: bool = key(False, "Ask for a fused attention kernel; each device takes the best one anyway.")
    freeze_include: tuple[str, ...] | None = key(None, "Parameters that do not train (fnmatch patterns).")
    freeze_exclude: tuple[str, ...] | None = key(None, "Parameters that train although freeze_include names them.")
    lora: bool = key(False, "Train low-rank adapters in place of the language model's weights.")
    lora_path: str | None = path_key(None, "Adapter folder to go on from.")
    lora_rank: int = key(8, "Rank of the adapters.", low=1, high=65536)
    lora_alpha: int = key(16, "Adapters are scaled by lora_alpha / lora_rank.", low=1)
    lora_dropout: float = key(0.05, "Dropout in front of the adapters.", low=0, high=0.99)
    lora_target_modules: tuple[str, ...] | None = key(
        None,
        "Linear layers of the decoder that get an adapter: regular expressions of whole names, or ends of names as in "
        "peft (q_proj); those of the tower only with vision_tower in the text. null: all of the decoder.",
    )
    prefix_tuning: bool = key(False, "Prefix tuning.", fixed=NO_EFFECT)
    num_prefix_tokens: int = key(128, "Prefix tuning.", fixed=NO_EFFECT)
    from_aistudio: bool = key(False, "AI Studio.", fixed=_NO_AISTUDIO)
    save_to_aistudio: bool = key(False, "AI Studio.", fixed=_NO_AISTUDIO)
    aistudio_repo_id: str | None = key(None, "AI Studio.", fixed=_NO_AISTUDIO)
    aistudio_repo_private: bool = key(True, "AI Studio.", fixed=_NO_AISTUDIO)
    aistudio_repo_license: str = key("Apache License 2.0", "AI Studio.", fixed=_NO_AISTUDIO)
    aistudio_token: str | None = key(None, "AI Studio.", fixed=_NO_AISTUDIO)
    rslora: bool = key(False, "Scale adapters by lora_alpha / sqrt(lora_rank) (rank-stabilised LoRA).")
    lora_plus_scale: float = key(1.0, "Learning rate of the adapters' B, as a multiple of the rate (LoRA+).", above=0)
    use_dora: bool = key(False, "Train the length of each column of the weights beside the adapters (DoRA).")
    pissa: bool = key(False, "Let adapters begin as the principal part of the weights (PiSSA).")
    pissa_iter: int = key(
        16, "Rounds of the search for the principal part; -1: the exact decomposition, minutes a layer.", low=-1
    )
    modules_to_save: tuple[str, ...] | None = key(
        None,
        "Modules that train whole beside the adapters and are saved with them, by the ends of their names as in peft: "
        "embed_tokens, lm_head, mm_projector, ...",
    )
    neftune: bool = key(False, "Noise on the embeddings of training rows (NEFTune).")
    neftune_noise_alpha: float = key(5.0, "Uniform within neftune_noise_alpha / sqrt(length x width).", above=0)
    template: str | None = key(None, "Conversation template (version in LLaVA). null: as the checkpoint says.")
    vision_tower: str | None = path_key(None, "Folder or name of the vision tower. null: as the checkpoint says.")
    pretrain_mm_mlp_adapter: str | None = path_key(None, "File or folder of a trained projector (mm_projector.bin).")
    mm_projector_type: str | None = key(None, "linear, mlpNx_gelu or identity. null: as the checkpoint says.")
    mm_vision_select_layer: int | None = key(None, "Layer of the tower that gives the features, e.g. -2.")
    mm_vision_select_feature: str | None = key(
        None, "Patches alone, or with the class token.", choices=("patch", "cls_patch")
    )
    mm_dense_connector_type: str | None = key(
        None, "Features of several layers (Dense Connector). null: as the checkpoint says.", choices=CONNECTORS
    )
    mm_image_size: int | None = key(
        None, "Side of a tile in pixels, for InternViT, which takes any. null: as the checkpoint says.", low=14
    )
    mm_use_im_start_end: bool | None = key(None, "Put <im_start> and <im_end> around every image.")
    mm_use_im_patch_token: bool | None = key(None, "Add the token <im_patch> to the vocabulary.")
    mm_patch_merge_type: str | None = key(
        None, "How the tiles of an image are merged.", choices=("flat", "spatial", "spatial_unpad")
    )
    tune_mm_mlp_adapter: bool = key(False, "Train the projector alone.")
    freeze_mm_mlp_adapter: bool = key(False, "Do not train the projector.")
    tune_entire_model: bool = key(False, "Train the vision tower with everything else; with lora, beside the adapters.")
    tune_vision_tower: bool = key(False, "Train the vision tower alone (and the projector with tune_mm_mlp_adapter).")
    tune_vit_from_layer: int | None = key(
        None, "First layer of the vision tower that trains, from 0. null or -1: all of the tower.", low=-1
    )


@dataclass(frozen=True)
class DataGroup:
    """Which rows are read, and how they become samples."""

    dataset: dict[str, Any] | None = key(
        None, 'Data sets: {"train": [{"data_files": ...}], "eval": [...], "test": [...]}.'
    )
    data_path: str | None = path_key(None, "LLaVA's way to name one training file, or a mixture (LLaVA-NeXT's YAML, "
                                     "InternVL's meta file); instead of dataset.")  # fmt: skip
    image_folder: str | None = path_key(None, "Folder that relative image paths start from. null: the current folder.")
    allow_outside_root: bool = key(False, "Accept image paths and links that lead out of image_folder.")
    allow_image_urls: bool = key(False, "Fetch images whose path is an http(s) address, with limits on size and time.")
    check_images: str = key("auto", "All images before the run: not looked at, whether the files exist, their headers "
                            "read, or decoded. auto: header, with more than 100,000 rows exists.",
                            choices=("auto", "none", "exists", "header", "decode"))  # fmt: skip
    exif_rotation: bool = key(False, "Turn images as their EXIF data say; the original ignores that.")
    max_image_bytes: int = key(20 * 2**20, "Largest image file in bytes.", low=1)
    max_image_pixels: int = key(50_000_000, "Most pixels of an image.", low=1, high=89_478_485)
    max_image_side: int = key(16384, "Longest side of an image in pixels.", low=1)
    max_image_aspect: float = key(200.0, "Most times that the long side of an image is the short one.", low=1)
    max_image_memory: int = key(285_000_000, "Most bytes of memory that decoding one image may take.", low=1)
    on_bad_sample: str = key("error", "A row that cannot be used stops the run, or is skipped and counted.",
                             choices=("error", "skip"))  # fmt: skip
    skip_limit: float = key(0.01, "Largest share of bad rows that on_bad_sample skip leaves out; one may always be.",
                            low=0, high=1)  # fmt: skip
    images_without_mark: str = key("error", "Rows with images, but no <image> in the text: a bad row, or the mark "
                                   "goes in front of the first question.", choices=("error", "front"))  # fmt: skip
    mark_without_images: str = key("error", "Rows with <image> in the text, but no image: a bad row, or the mark "
                                   "is nothing but text.", choices=("error", "text"))  # fmt: skip
    max_length: int = key(2048, "Longest sample in positions, image tokens included.", low=1)
    pad_to_multiple_of: int | None = key(None, "Batches are padded to a multiple of this length.", low=1)
    image_aspect_ratio: str | None = key(
        None, "How images become tiles: square, pad, anyres or anyres_max_N. null: as the checkpoint says.",
        check=checks.aspect_word,
    )  # fmt: skip
    image_grid_pinpoints: tuple[tuple[int, int], ...] | str | None = key(
        None, 'Sizes that anyres may choose from, as [width, height] in pixels, or tiles as "(1x1),...,(6x6)".',
        check=checks.grid,
    )  # fmt: skip
    chat_template: str | None = path_key(None, "chat_template.json of every chatml data set that names none.")
    single_view_repeat: int = key(4, "In an mv_dataset a lone image stands so often, as long as 4 views.", low=1)
    mixtoken: bool = key(False, "Pack several samples into one row of at most max_length positions.")
    task_name: str | None = key(None, "Sub-task of a built-in data set.", fixed=NO_EFFECT)
    src_length: int = key(1024, "Longest question.", fixed="it has no effect in PaddleMIX; use max_length")
    eval_with_do_generation: bool = key(False, "Generate during evaluation.", fixed=OWN_FLOW)
    save_generation_output: bool = key(False, "Generate during evaluation.", fixed=OWN_FLOW)
    lazy: bool = key(False, "Read rows when they are needed.", fixed="rows are always read when they are needed")
    splits: str | None = key(None, "Part of a data set.", fixed="each entry of dataset names its own file")


@dataclass(frozen=True)
class GenerateGroup:
    """Generation; kept because PaddleMIX's files may hold the keys."""

    top_k: int = key(1, "Sampling.", fixed="the answers of eval_generate are greedy; give it to the chat")
    top_p: float = key(1.0, "Sampling.", fixed="the answers of eval_generate are greedy; give it to the chat")
