# SPDX-License-Identifier: Apache-2.0
"""Family k: the data side of MV-LLaVA. Templates, tokenizer, views, rows, batches, the batch tools' prompts, groups."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.datasets.collate import Collator
from paddlemix.datasets.multiview import CAP3D_FOLDER, CAP3D_VIEWS, SV3D, ZEROPP
from paddlemix.datasets.preprocess import Encoded, SampleEncoder
from paddlemix.datasets.sample import Sample
from paddlemix.datasets.sources import DatasetEntry, read
from paddlemix.imaging.load import load_image
from paddlemix.imaging.preprocess import preprocess
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.settings.model import ImageConfig, VisionConfig
from paddlemix.text.messages import Message
from paddlemix.text.render import render
from paddlemix.text.templates import TEMPLATES, Template, get, prompt_text
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.constants import IGNORE_INDEX
from paddlemix.utils.errors import PaddleMixError
from tools.golden.case import Case, guarded
from tools.golden.common import token_cases
from tools.golden.prompts import LOST, learnt_fault

FOLDER = "mv_llava"
PIXELS = 1e-5
REPEAT = 4
"""The original shows a lone image four times."""


def run(folder: Path) -> Iterator[Case]:
    """Every data-side case of ``folder/mv_llava`` (or of ``folder/internvl_mv/mv_llava``)."""
    root = next((place for place in (folder, folder / "internvl_mv") if (place / FOLDER).is_dir()), None)
    if root is None:
        return
    source = root / FOLDER
    for name, compare in (
        ("tokenize.json", _tokenize),
        ("conversations.json", _conversations),
        ("batch_prompts.json", _batch_prompts),
        ("dataset.json", _rows),
        ("preprocess_views.npz", _views),
        ("optimizer_groups.json", _groups),
    ):
        if (source / name).is_file():
            yield from guarded(f"k/{name}", compare, root, source / name)


def checkpoint(root: Path) -> Path:
    """The folder whose tokenizer the cases were made with: the share4v checkpoint, found by its config."""
    for path in sorted((root / FOLDER).glob("*/config.json")):
        if json.loads(path.read_text(encoding="utf-8")).get("model_type") == "share4v":
            return path.parent
    raise FileNotFoundError(f"{root / FOLDER}/*/config.json with model_type share4v")


def image_config(root: Path, aspect: str) -> ImageConfig:
    """Settings of ``image_processor_config.json``."""
    facts = json.loads((root / FOLDER / "image_processor_config.json").read_text(encoding="utf-8"))
    size, crop = facts["size"], facts["crop_size"]
    return ImageConfig(
        crop_size=crop["height"] if isinstance(crop, dict) else crop,
        resize_size=size["shortest_edge"] if isinstance(size, dict) else size,
        aspect=aspect,
        mean=tuple(facts["image_mean"]),
        std=tuple(facts["image_std"]),
    )


def _exact(name: str, ours: Any, theirs: Any) -> Case:
    if ours == theirs:
        return Case(name, 0.0, 0.0, "ok")
    differ = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return Case(name, float(max(differ, 1)), 0.0, "fail", f"ours {ours!r:.120}, reference {theirs!r:.120}")


def _near(name: str, ours: np.ndarray, theirs: np.ndarray) -> Case:
    if ours.shape != theirs.shape:
        return Case(name, float("inf"), PIXELS, "fail", f"shape {ours.shape}, reference {theirs.shape}")
    difference = float(np.abs(ours.astype(np.float64) - theirs).max())
    return Case(name, difference, PIXELS, "ok" if difference <= PIXELS else "fail")


# ---- text ------------------------------------------------------------------------------------------------------


def _tokenize(root: Path, path: Path) -> Iterator[Case]:
    for kind, rows in json.loads(path.read_text(encoding="utf-8")).items():
        tokenizer = load_tokenizer(checkpoint(root), legacy=kind == "legacy_True")
        yield from token_cases(f"k/tokenize/{kind}", rows, tokenizer)


def _conversations(root: Path, path: Path) -> Iterator[Case]:
    turns = [Message("user", "<image>\nWhat is it?"), Message("assistant", "A cat."), Message("user", "Which colour?")]
    for name, facts in json.loads(path.read_text(encoding="utf-8")).items():
        yield from guarded(f"k/conversations/{name}", _conversation, name, facts, turns)


def _conversation(name: str, facts: dict[str, Any], turns: list[Message]) -> Case:
    case = f"k/conversations/{name}"
    if name not in TEMPLATES:
        return Case(case, 1.0, 0.0, "fail", "no template of this name")
    if "error" in facts:
        reason = f"the original raises {facts['error']:.60}; ours gives a prompt"
        return Case(case, 0.0, 0.0, "deviates", reason)
    template = get(name)
    ours = [
        template.system,
        prompt_text(template, turns[:1], answer_open=True),
        prompt_text(template, turns, answer_open=True),
    ]
    return _exact(case, ours, [facts["system"], facts["prompt_turn1"], facts["prompt_turn2"]])


def _batch_prompts(root: Path, path: Path) -> Iterator[Case]:
    data = json.loads(path.read_text(encoding="utf-8"))
    template = _template_of(data)
    for script in sorted(key for key, rows in data.items() if isinstance(rows, list) and "prompt" in str(rows[:1])):
        messages: list[Message] = []
        for i, row in enumerate(data[script]):
            messages.append(Message("user", row["question"]))
            label = f"k/batch_prompts/{script}/{i}"
            yield from guarded(label, _batch_prompt, label, root, template, list(messages), row)
            messages.append(Message("assistant", row["fed_back_answer"]))


def _batch_prompt(
    label: str, root: Path, template: Template, messages: list[Message], row: dict[str, Any]
) -> Iterator[Case]:
    yield _exact(f"{label}/text", prompt_text(template, messages, answer_open=True), row["prompt"])
    for kind in sorted(key for key in row if key.startswith("input_ids_")):
        tokenizer = load_tokenizer(checkpoint(root), legacy=kind.endswith("True"))
        yield _exact(f"{label}/{kind}", render(template, messages, tokenizer, answer_open=True).ids, row[kind])


def _template_of(data: dict[str, Any]) -> Any:
    """The template whose system text the stored prompts begin with."""
    prompt = data["obj"][0]["prompt"]
    return next(get(name) for name in ("share4v_v1", "vicuna_v1") if prompt.startswith(get(name).system))


# ---- rows and batches ------------------------------------------------------------------------------------------


def _rows(root: Path, path: Path) -> Iterator[Case]:
    data = json.loads(path.read_text(encoding="utf-8"))
    for stage, file, template, aspect in (
        ("instruct_v1", "mv_instruct.json", "v1", "pad"),
        ("pretrain_plain", "mv_pretrain.json", "plain", "square"),
    ):
        if not (root / file).is_file():
            continue
        samples = samples_of(root, file)
        for key in sorted(key for key in data if key.startswith(stage)):
            tokenizer = load_tokenizer(checkpoint(root), legacy=key.endswith("True"))
            encoder = encoder_of(root, tokenizer, template, aspect)
            yield from _row_cases(key, data[key], encoder, {sample.id: sample for sample in samples})
        if stage == "instruct_v1":
            yield from _length_cases(data, samples)
        if not (root / "images" / "mv").is_dir():
            yield Case(f"k/pixels/{stage}", 0.0, PIXELS, "skipped", "this folder has no images")
            continue
        encoder = encoder_of(root, load_tokenizer(checkpoint(root)), template, aspect)
        encoded = [encoder(sample) for sample in samples]
        views = {row["id"]: row["n_images"] for key in data if key.startswith(stage) for row in data[key]}
        for sample, item in zip(samples, encoded, strict=True):
            if isinstance(views.get(sample.id), int):
                yield _exact(f"k/dataset/{stage}/{sample.id}/views", [len(shown(item))], [views[sample.id]])
        yield from _pixel_cases(root, f"{stage.partition('_')[0]}_{aspect}", samples, encoded)
        yield from _batch_cases(root, stage.partition("_")[0], encoded, encoder.tokenizer)
    if "collate_text_only" in data:
        yield from _text_only(root, data["collate_text_only"])


def _text_only(root: Path, error: str) -> Iterator[Case]:
    """Rows without an image, which the original's collator cannot take."""
    encoder = encoder_of(root, load_tokenizer(checkpoint(root)), "v1", "pad")
    rows = [encoder(sample) for sample in samples_of(root, "mv_instruct.json") if not sample.images]
    vision = encoder.processor.vision
    batch = Collator(tokens_per_tile=vision.tokens_per_tile, tile_side=vision.image_size)(rows)
    learns = bool(rows) and bool((batch["labels"] != IGNORE_INDEX).any()) and "pixels" not in batch
    yield Case("k/collate_text_only", 0.0, 0.0, "deviates" if learns else "fail", f"the original: {error:.70}")


def samples_of(root: Path, file: str) -> list[Sample]:
    """The rows of a data file with their images where the golden folder has them.

    Sheets are named from the folder itself, objects and lone images from ``images/mv``.
    """
    pictures = root / "images" / "mv"
    found = []
    for sample in read(DatasetEntry((str(root / file),), str(pictures), multiview=REPEAT)):
        if SV3D in sample.id or ZEROPP in sample.id:
            images = tuple(str(root / Path(image).relative_to(pictures)) for image in sample.images)
            sample = dataclasses.replace(sample, images=images, image_root=str(root))
        found.append(sample)
    return found


def encoder_of(root: Path, tokenizer: Tokenizer, template: str, aspect: str) -> SampleEncoder:
    """The encoder of a stage: special tokens in texts are parsed, as the original does; nothing is cut."""
    image = image_config(root, aspect)
    vision = VisionConfig(64, 64, 1, 1, image_size=image.crop_size, patch_size=14)
    processor = ImageProcessor(image, vision)
    return SampleEncoder(tokenizer, processor, get(template, training=True), max_length=10**6, specials=True)


def _row_cases(
    key: str, rows: Sequence[dict[str, Any]], encoder: SampleEncoder, samples: dict[str, Sample]
) -> Iterator[Case]:
    for row in rows:
        label = f"k/dataset/{key}/{row['id']}"
        yield from guarded(label, _row, label, row, encoder, samples)


def _row(label: str, row: dict[str, Any], encoder: SampleEncoder, samples: dict[str, Sample]) -> Iterator[Case]:
    sample = samples[row["id"]]
    ours = encoder.render(sample)
    yield _exact(f"{label}/ids", ours.ids, row["input_ids"])
    case = _exact(f"{label}/labels", ours.labels, row["labels"])
    if case.status == "fail" and set(row["labels"]) == {IGNORE_INDEX}:
        fault = learnt_fault(ours, encoder.tokenizer, sample.messages)
        case = dataclasses.replace(case, status="fail" if fault else "deviates", reason=fault or LOST)
    yield case


def shown(encoded: Encoded) -> np.ndarray:
    """The tiles of a sample as often as its layouts show them: [views, 3, S, S]."""
    if encoded.pixels is None:
        return np.empty((0, 3, 0, 0), dtype=np.float32)
    first, parts = 0, []
    for layout in encoded.layouts:
        per_tile = int(layout.order.max() + 1) // layout.tiles
        parts.append(encoded.pixels[first + layout.order[::per_tile] // per_tile])
        first += layout.tiles
    return np.concatenate(parts)


def _pixel_cases(root: Path, prefix: str, samples: Sequence[Sample], encoded: Sequence[Encoded]) -> Iterator[Case]:
    path = root / FOLDER / "dataset_pixels.npz"
    if not path.is_file():
        return
    ours = {sample.id: shown(item) for sample, item in zip(samples, encoded, strict=True)}
    with np.load(path) as expected:
        for key in (key for key in expected.files if key.startswith(f"{prefix}/")):
            name = key.partition("/")[2]
            if not len(ours[name]) and not expected[key].any():
                yield Case(f"k/pixels/{key}", 0.0, PIXELS, "deviates", "text only: no image of zeros is made")
            else:
                yield _near(f"k/pixels/{key}", ours[name], expected[key])


def _batch_cases(root: Path, stage: str, encoded: Sequence[Encoded], tokenizer: Tokenizer) -> Iterator[Case]:
    """The original's collated batches: found by their stage's name, rows in the order of the file."""
    for path in sorted((root / FOLDER).glob(f"collated_{stage}*.npz")):
        yield from guarded(f"k/{path.stem}", _batch_file, path, encoded, tokenizer)


def _batch_file(path: Path, encoded: Sequence[Encoded], tokenizer: Tokenizer) -> Iterator[Case]:
    with np.load(path) as expected:
        rows = _same_rows(expected["input_ids"], expected["attention_mask"], encoded)
        width = expected["input_ids"].shape[1]
        for key, fill in (("input_ids", tokenizer.pad_id), ("labels", IGNORE_INDEX)):
            values = [(item.ids if key == "input_ids" else item.labels).tolist()[:width] for item in rows]
            ours = [row + [fill] * (width - len(row)) for row in values]
            yield _exact(f"k/{path.stem}/{key}", ours, expected[key].tolist())
        mask = [[True] * min(len(item.ids), width) + [False] * (width - len(item.ids)) for item in rows]
        yield _exact(f"k/{path.stem}/attention_mask", mask, expected["attention_mask"].tolist())
        yield _near(f"k/{path.stem}/images", np.stack([shown(item) for item in rows]), expected["images"])


def _same_rows(ids: np.ndarray, mask: np.ndarray, encoded: Sequence[Encoded]) -> list[Encoded]:
    """Our samples in the order of the batch's rows; where none fits, the next ones of the file."""
    found = []
    for number, (row, kept) in enumerate(zip(ids, mask, strict=True)):
        wanted = row[kept].tolist()
        fits = (item for item in encoded if item.ids.tolist()[: len(wanted)] == wanted)
        found.append(next(fits, encoded[number]))
    return found


def _length_cases(data: dict[str, Any], samples: Sequence[Sample]) -> Iterator[Case]:
    from paddlemix.datasets.dataset import word_lengths

    if "lengths" in data:
        lengths, modality = word_lengths(samples)
        yield _exact("k/dataset/lengths", lengths.tolist(), data["lengths"])
        yield _exact("k/dataset/modality_lengths", modality.tolist(), data["modality_lengths"])


def _views(root: Path, path: Path) -> Iterator[Case]:
    """Views of an object, straight from their files."""
    if not (root / "images" / "mv").is_dir():
        yield Case("k/preprocess_views", 0.0, PIXELS, "skipped", "this folder has no images")
        return
    with np.load(path) as expected:
        for key in expected.files:
            yield from guarded(f"k/preprocess_views/{key}", _object, root, key, expected[key])


def _object(root: Path, key: str, expected: np.ndarray) -> Case:
    name, _, aspect = key.rpartition("_")
    config = image_config(root, aspect)
    files = [root / "images" / "mv" / CAP3D_FOLDER.format(view) / f"{name}.jpg" for view in CAP3D_VIEWS]
    ours = np.concatenate([preprocess(load_image(file), config) for file in files])
    return _near(f"k/preprocess_views/{key}", ours, expected)


# ---- what trains, at which rate --------------------------------------------------------------------------------

NORMS = "with transformers 4.31 the weights of LlamaRMSNorm decay; ours do not, as with later versions"
TOWER_RATE = "the original ignores vision_tower_lr unless mm_projector_lr is set; ours obeys it"


def _groups(root: Path, path: Path) -> Iterator[Case]:
    from paddlemix.checkpoint import keymap
    from paddlemix.models.llava import build_empty
    from paddlemix.settings.published.config import load_config
    from paddlemix.settings.run.training import TrainingSettings
    from paddlemix.trainer.stages import plan_stage

    try:
        model = build_empty(load_config(checkpoint(root)))
    except PaddleMixError as error:
        yield Case("k/optimizer_groups", 1.0, 0.0, "fail", f"the checkpoint's config is not read: {error}"[:200])
        return
    for name, facts in json.loads(path.read_text(encoding="utf-8")).items():
        theirs = {
            keymap.ours(parameter, "llava").name: (group["lr"], group["weight_decay"] > 0)
            for group in facts["groups"]
            for parameter in group["params"]
        }
        layers = [int(key.split(".layers.")[1].split(".")[0]) for key in theirs if ".vision_tower." in key]
        settings = TrainingSettings().with_changes(
            tune_entire_model=True,
            tune_vit_from_layer=min(layers),
            learning_rate=facts["groups"][0]["lr"],
            mm_projector_lr=facts["mm_projector_lr"],
            vision_tower_lr=facts["vision_tower_lr"],
        )
        plan = plan_stage(model, settings)
        ours = {key: (rule.learning_rate, rule.decay) for key, rule in {**plan.rules, **plan.idle}.items()}
        yield _group_case(f"k/optimizer_groups/{name}", ours, theirs, facts)


def _group_case(name: str, ours: dict[str, Any], theirs: dict[str, Any], facts: dict[str, Any]) -> Case:
    differ = {key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key)}
    norms = {key for key in differ if "norm" in key and not key.startswith("llama.vision_tower.")}
    sound = all(key in ours and key in theirs and ours[key][0] == theirs[key][0] for key in norms)
    if not differ:
        return Case(name, 0.0, 0.0, "ok")
    if differ == norms and sound:
        return Case(name, float(len(differ)), 0.0, "deviates", NORMS)
    if facts["mm_projector_lr"] is None and facts["vision_tower_lr"] is not None:
        return Case(name, float(len(differ)), 0.0, "deviates", TOWER_RATE)
    return Case(name, float(len(differ)), 0.0, "fail", f"{sorted(differ)[:3]}")
