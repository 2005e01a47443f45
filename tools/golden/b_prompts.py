# SPDX-License-Identifier: Apache-2.0
"""Family b: tokenizer, prompts, training ids and labels, keyword stopping. Everything is exact."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paddlemix.text.messages import Message, first_turn_with_images, messages_from_llava_row
from paddlemix.text.render import Rendered, render
from paddlemix.text.stream import keyword_stop
from paddlemix.text.templates import Template, get, prompt_text
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_PATCH_TOKEN
from paddlemix.utils.errors import PaddleMixError
from tools.golden.case import Case

KINDS = {
    "slow_legacy_false": {"legacy": False, "kind": "slow"},
    "slow_legacy_true": {"legacy": True, "kind": "slow"},
    "fast_mistral": {"kind": "fast"},
}
LOST = "the original loses the row to its count of tokens; ours learns exactly the answers"
SLID = "the original counts a bos for every turn, so its mask slides; ours learns exactly the answers"


def run(folder: Path) -> Iterator[Case]:
    """Every case of ``folder/b_prompts``, with the tokenizer of ``folder/hub``."""
    source = folder / "b_prompts"
    families = {
        "tokenizer.json": _tokenizer_cases,
        "tokenizer_image_token.json": _image_token_cases,
        "keywords_stopping.json": _keyword_cases,
        "conv_prompts.json": _prompt_cases,
        "preprocess_train.json": _training_cases,
    }
    for name, compare in families.items():
        if (source / name).is_file():
            yield from compare(json.loads((source / name).read_text(encoding="utf-8")), Tokenizers(folder))
    yield from _dataset_batches(folder)
    yield from _generation_prompts(folder)


class Tokenizers:
    """The tokenizer that a case asks for. The original's settings were made with the first one of the hub."""

    def __init__(self, folder: Path) -> None:
        models = sorted((folder / "hub").glob("*/*/tokenizer.model"))
        if not models:
            raise FileNotFoundError(f"{folder}/hub/*/*/tokenizer.model")
        # llava-hf folders hold added tokens; the cases were made with the plain folders.
        plain = [path.parent for path in models if not (path.parent / "added_tokens.json").is_file()]
        self._folder = (plain or [models[0].parent])[0]

    def named(self, kind: str) -> Tokenizer:
        """The tokenizer that the data calls ``kind``."""
        return load_tokenizer(self._folder, **KINDS[kind])

    def flags(self, legacy: bool | None, fast: bool) -> Tokenizer:
        """The tokenizer with these settings."""
        return load_tokenizer(self._folder, legacy=bool(legacy), kind="fast" if fast else "slow")


def _exact(name: str, ours: Any, theirs: Any) -> Case:
    """Ok when equal; else the number of positions that differ."""
    if ours == theirs:
        return Case(name, 0.0, 0.0, "ok")
    differ = sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    return Case(name, float(max(differ, 1)), 0.0, "fail", f"ours {ours!r:.120}, reference {theirs!r:.120}")


def _tokenizer_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    for kind, block in data["tokenizers"].items():
        tokenizer = tokenizers.named(kind)
        name = f"b/tokenizer/{kind}"
        facts = [tokenizer.base_size, tokenizer.pad_id, tokenizer.model_max_length, tokenizer.padding_side]
        yield _exact(
            f"{name}/facts", facts, [block[k] for k in ("vocab", "pad_id", "model_max_length", "padding_side")]
        )
        for i, row in enumerate(block["rows"]):
            ours = [
                tokenizer.encode(row["text"]),
                [tokenizer.token(number) for number in row["ids"]],
                tokenizer.encode(row["text"], bos=False),
                tokenizer.decode(row["ids"], skip_special=False),
                tokenizer.decode(row["ids"]),
            ]
            keys = ("ids", "tokens", "ids_nospecial", "decode", "decode_skip")
            yield _exact(f"{name}/{i}", ours, [row[key] for key in keys])
    for i, row in enumerate(data.get("decode_random", [])):
        for kind, text in row["decode"].items():
            tokenizer = tokenizers.named(kind)
            skipped = tokenizer.decode(row["ids"])
            ours = [tokenizer.decode(row["ids"], skip_special=False), skipped, skipped.strip()]
            theirs = [text, row["decode_skip"][kind], row["strip_skip"][kind]]
            yield _exact(f"b/tokenizer/{kind}/decode_random/{i}", ours, theirs)
    yield from _added_token_cases(data.get("added_tokens"), tokenizers)


def _added_token_cases(data: dict[str, Any] | None, tokenizers: Tokenizers) -> Iterator[Case]:
    if data is None:
        return
    tokenizer = tokenizers.named("slow_legacy_false")
    tokenizer.add_special(data["order"])
    yield _exact("b/tokenizer/added/ids", [tokenizer.token_id(token) for token in data["order"]], data["ids"])
    for i, row in enumerate(data["rows"]):
        yield _exact(f"b/tokenizer/added/{i}", tokenizer.encode(row["text"]), row["ids"])
    for i, row in enumerate(data["tokenizer_image_token"]):
        yield _exact(f"b/tokenizer/added/image_token/{i}", tokenizer.encode_with_images(row["text"]), row["ids"])


def _image_token_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    for i, row in enumerate(data["cases"]):
        for kind, ids in row["ids"].items():
            ours = tokenizers.named(kind).encode_with_images(row["prompt"])
            yield _exact(f"b/tokenizer_image_token/{i}/{kind}", ours, ids)


def _keyword_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    tokenizer = tokenizers.named("slow_legacy_false")
    for i, row in enumerate(data["cases"]):
        ours = keyword_stop(tokenizer, row["keywords"], row["prompt_ids"], row["output_ids"])
        yield _exact(f"b/keywords_stopping/{i}", [ours], [row["stops_after"]])


def _prompt_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    for name, facts in data["templates"].items():
        template = get(name)
        bare = facts["system"].removeprefix("<|im_start|>system\n")
        yield _exact(f"b/templates/{name}", [template.system, 2 * len(template.examples)], [bare, facts["n_messages"]])
    for row in data["cases"]:
        name = f"b/conv_prompts/{row['template']}/{row['variant']}"
        template = get(row["template"])
        messages, answer_open = _messages(template, row["messages"])
        try:
            ours = prompt_text(template, messages, answer_open=answer_open)
        except PaddleMixError as error:
            ours = f"{type(error).__name__}: {error}"
        if "error" in row:
            yield Case(name, 0.0, 0.0, "deviates", f"the original raises {row['error']}; ours: {ours!r:.80}")
        else:
            yield _exact(name, ours, row["prompt"])


def _messages(template: Template, rows: Sequence[Any]) -> tuple[list[Message], bool]:
    """Messages of a case, and whether it ends with an open answer. ``["TUPLE", text]`` is a turn with a picture."""
    found: list[Message] = []
    for i, (role, text) in enumerate(rows):
        if isinstance(text, list):
            # The original treats only the first message so, and example rounds come before it.
            first = i == 0 and not template.examples
            found += first_turn_with_images(text[1], 1, mmtag=template.mmtag) if first else [Message("user", text[1])]
        elif text is not None:
            found.append(Message("assistant" if role else "user", text))
    return found, bool(rows) and rows[-1] == [1, None]


def _training_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    for i, row in enumerate(data["cases"]):
        name = f"b/preprocess_train/{i}/{row['version']}/{row['sample']}"
        tokenizer = tokenizers.flags(row["legacy"], row["fast"])
        if row["mm_use_im_patch_token"]:
            tokenizer.add_special([IMAGE_PATCH_TOKEN])
        if row["mm_use_im_start_end"]:
            tokenizer.add_special(["<im_start>", "<im_end>"])
        if row["chatml_tokens"]:
            tokenizer.add_special(["<|im_start|>", "<|im_end|>"])
            tokenizer.add_bos = False
        template = get(row["version"], training=True)
        messages = messages_from_llava_row(
            row["conversations"],
            layout=template,
            images=int(row["has_image"]),
            use_im_start_end=row["mm_use_im_start_end"],
        )
        ours = render(template, messages, tokenizer, answer_open=False, specials=True, images=row["has_image"])
        yield _training_case(name, row, ours, tokenizer, messages)


def _training_case(
    name: str, row: dict[str, Any], ours: Rendered, tokenizer: Tokenizer, messages: list[Message]
) -> Case:
    # The original cuts rows without a picture when it tokenizes, and rows with one only in the collator.
    end = None if row["has_image"] else row["model_max_length"]
    ids, labels = ours.ids[:end], ours.labels[:end]
    if ids != row["input_ids"]:
        return _exact(f"{name} ids", ids, row["input_ids"])
    if labels == row["labels"]:
        return Case(name, 0.0, 0.0, "ok")
    fault = _answers_fault(ours, tokenizer, messages)
    if fault:
        return Case(name, 1.0, 0.0, "fail", fault)
    differ = float(sum(a != b for a, b in zip(labels, row["labels"], strict=True)))
    if row["stdout"].strip() and row["n_target"] == 0:
        return Case(name, differ, 0.0, "deviates", LOST)
    if _slid_labels(row, ours, tokenizer) == row["labels"]:
        return Case(name, differ, 0.0, "deviates", SLID)
    return Case(name, differ, 0.0, "fail", "labels differ where the original's are sound")


def _answers_fault(ours: Rendered, tokenizer: Tokenizer, messages: list[Message]) -> str:
    """Empty when what is learnt, decoded, is every answer in order with only its end mark behind it; else the fault."""
    learnt = tokenizer.decode([number for number in ours.labels if number != IGNORE_INDEX], skip_special=False)
    expected = "".join(part.text for part in ours.segments if part.learns)
    if "".join(learnt.split()) != "".join(expected.split()):
        return f"learnt {learnt!r:.120}, expected {expected!r:.120}"
    answers = [message.text for message in messages if message.role == "assistant"]
    at = 0
    for answer in answers:
        at = expected.find(answer, at) + len(answer)
        if at < len(answer):
            return f"the answer {answer!r:.80} is not among what is learnt"
    return ""


def _slid_labels(row: dict[str, Any], ours: Rendered, tokenizer: Tokenizer) -> list[int] | None:
    """What the original's generic preprocess (version v0) makes of a row: it masks by the token counts of single turns.

    Each count holds a bos that the whole text has only once, so the mask slides by one token a turn. Of a human turn
    all but the first two tokens are masked.
    """
    header, *turns = ours.text.split("\n### ")
    turns = [f"### {turn}\n" for turn in turns[:-1]]
    if "v0" not in row["version"] or not header.endswith("\n"):
        return None
    labels = list(ours.ids)
    at = len(tokenizer.encode_with_images(header + "\n"))
    labels[:at] = [IGNORE_INDEX] * min(at, len(labels))
    for turn in turns:
        size = len(tokenizer.encode_with_images(turn))
        if turn.startswith("### Human"):
            begin, end = min(at + 2, len(labels)), min(at + size, len(labels))
            labels[begin:end] = [IGNORE_INDEX] * (end - begin)
        at += size
    return labels[: len(row["labels"])]


def _dataset_batches(folder: Path) -> Iterator[Case]:
    """Ids and labels of the original's collated training rows (their pictures belong to family a)."""
    rows_file = folder / "b_prompts" / "train_data.json"
    if not rows_file.is_file():
        return
    import numpy as np

    rows = json.loads(rows_file.read_text(encoding="utf-8"))
    tokenizer = Tokenizers(folder).named("slow_legacy_false")
    for path in sorted((folder / "b_prompts").glob("dataset_batch_*.npz")):
        data = np.load(path)
        version = path.stem.removeprefix("dataset_batch_").rpartition("_")[0]
        yield from _collated(path.stem, data, [_sample(row, version, tokenizer) for row in rows], tokenizer.pad_id)


def _sample(row: dict[str, Any], version: str, tokenizer: Tokenizer) -> Rendered:
    template, images = get(version, training=True), int("image" in row)
    messages = messages_from_llava_row(row["conversations"], layout=template, images=images)
    return render(template, messages, tokenizer, answer_open=False, specials=True, images=bool(images))


def _collated(name: str, data: Any, samples: list[Rendered], pad: int) -> Iterator[Case]:
    for key, fill, values in (
        ("input_ids", pad, [sample.ids for sample in samples]),
        ("labels", IGNORE_INDEX, [sample.labels for sample in samples]),
    ):
        width = data[key].shape[1]
        cut = [row[: int(data["model_max_length"])] for row in values]
        yield _exact(f"b/{name}/{key}", [row + [fill] * (width - len(row)) for row in cut], data[key].tolist())


def _generation_prompts(folder: Path) -> Iterator[Case]:
    """The prompts of family e: their text from the history, and their ids from the text."""
    path = folder / "e_generate" / "generate.json"
    if not path.is_file():
        return
    tokenizers = Tokenizers(folder)
    for name, case in json.loads(path.read_text(encoding="utf-8")).items():
        tokenizer = tokenizers.named("fast_mistral" if name.startswith("v16m") else "slow_legacy_false")
        for i, row in enumerate(case.get("rounds", [case])):
            if "prompt" in row:
                ours = tokenizer.encode_with_images(row["prompt"])
                yield _exact(f"b/generate/{name}/{i}/ids", ours, row["input_ids"])
        if case.get("template") and "clean" in name:
            yield from _history(f"b/generate/{name}", case, tokenizer)


def _history(name: str, case: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Case]:
    """Rounds of a clean chat rendered from messages: the questions are cut out of the prompts."""
    template = get(case["template"])
    messages: list[Message] = []
    for i, row in enumerate(case["rounds"]):
        before = prompt_text(template, messages, answer_open=False) if messages else ""
        probe = prompt_text(template, [*messages, Message("user", "\0")], answer_open=True)
        front, back = probe.split("\0")
        question = row["prompt"][len(front) : len(row["prompt"]) - len(back)]
        messages.append(Message("user", question))
        ours = render(template, messages, tokenizer, answer_open=True)
        yield _exact(f"{name}/{i}/text", ours.text, row["prompt"])
        yield _exact(f"{name}/{i}/rendered", [len(before) <= len(ours.text), ours.ids], [True, row["input_ids"]])
        messages.append(Message("assistant", row["decode_skip_strip"]))
