# SPDX-License-Identifier: Apache-2.0
"""Family b: tokenizer, prompts, training ids and labels, keyword stopping. Everything is exact."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlemix.datasets.records import Place
from paddlemix.datasets.rows import MarkRules, read_row
from paddlemix.text.messages import Message, first_turn_with_images, placed_messages
from paddlemix.text.render import Rendered, render
from paddlemix.text.stream import keyword_stop
from paddlemix.text.templates import Template, get, prompt_text
from paddlemix.text.tokenizer import Tokenizer, load_tokenizer
from paddlemix.utils.constants import IGNORE_INDEX, IMAGE_PATCH_TOKEN
from paddlemix.utils.errors import PaddleMixError
from tools.golden.case import Case, guarded, unused_text

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
            yield from guarded(f"b/{name}", _of_file, source / name, compare, folder)
    yield from guarded("b/dataset_batch", _dataset_batches, folder)
    yield from guarded("b/generate", _generation_prompts, folder)


def _of_file(path: Path, compare: Callable[[Any, "Tokenizers"], Iterator[Case]], folder: Path) -> Iterator[Case]:
    return compare(json.loads(path.read_text(encoding="utf-8")), Tokenizers(folder))


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
        name = f"b/tokenizer/{kind}"
        yield from guarded(f"{name}/facts", _tokenizer_facts, f"{name}/facts", tokenizers, kind, block)
        for i, row in enumerate(block["rows"]):
            yield from guarded(f"{name}/{i}", _tokenizer_row, f"{name}/{i}", tokenizers, kind, row)
    for i, row in enumerate(data.get("decode_random", [])):
        for kind in row["decode"]:
            name = f"b/tokenizer/{kind}/decode_random/{i}"
            yield from guarded(name, _random_row, name, tokenizers, kind, row)
    if "added_tokens" in data:
        yield from guarded("b/tokenizer/added", _added_token_cases, data["added_tokens"], tokenizers)


def _tokenizer_facts(name: str, tokenizers: Tokenizers, kind: str, block: dict[str, Any]) -> Case:
    tokenizer = tokenizers.named(kind)
    facts = [tokenizer.base_size, tokenizer.pad_id, tokenizer.model_max_length, tokenizer.padding_side]
    return _exact(name, facts, [block[k] for k in ("vocab", "pad_id", "model_max_length", "padding_side")])


def _tokenizer_row(name: str, tokenizers: Tokenizers, kind: str, row: dict[str, Any]) -> Case:
    tokenizer = tokenizers.named(kind)
    ours = [
        tokenizer.encode(row["text"]),
        [tokenizer.token(number) for number in row["ids"]],
        tokenizer.encode(row["text"], bos=False),
        tokenizer.decode(row["ids"], skip_special=False),
        tokenizer.decode(row["ids"]),
    ]
    return _exact(name, ours, [row[key] for key in ("ids", "tokens", "ids_nospecial", "decode", "decode_skip")])


def _random_row(name: str, tokenizers: Tokenizers, kind: str, row: dict[str, Any]) -> Case:
    tokenizer = tokenizers.named(kind)
    skipped = tokenizer.decode(row["ids"])
    ours = [tokenizer.decode(row["ids"], skip_special=False), skipped, skipped.strip()]
    return _exact(name, ours, [row["decode"][kind], row["decode_skip"][kind], row["strip_skip"][kind]])


def _added_token_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    tokenizer = tokenizers.named("slow_legacy_false")
    tokenizer.add_special(data["order"])
    yield _exact("b/tokenizer/added/ids", [tokenizer.token_id(token) for token in data["order"]], data["ids"])
    for rows, encode, name in (
        (data["rows"], tokenizer.encode, "b/tokenizer/added"),
        (data["tokenizer_image_token"], tokenizer.encode_with_images, "b/tokenizer/added/image_token"),
    ):
        for i, row in enumerate(rows):
            yield from guarded(f"{name}/{i}", _encoded, f"{name}/{i}", encode, row)


def _encoded(name: str, encode: Callable[[str], list[int]], row: dict[str, Any]) -> Case:
    return _exact(name, encode(row["text"]), row["ids"])


def _image_token_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    for i, row in enumerate(data["cases"]):
        for kind, ids in row["ids"].items():
            name = f"b/tokenizer_image_token/{i}/{kind}"
            yield from guarded(name, _image_tokens, name, tokenizers, kind, row["prompt"], ids)


def _image_tokens(name: str, tokenizers: Tokenizers, kind: str, prompt: str, ids: list[int]) -> Case:
    return _exact(name, tokenizers.named(kind).encode_with_images(prompt), ids)


def _keyword_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    tokenizer = tokenizers.named("slow_legacy_false")
    for i, row in enumerate(data["cases"]):
        yield from guarded(f"b/keywords_stopping/{i}", _stop, f"b/keywords_stopping/{i}", tokenizer, row)


def _stop(name: str, tokenizer: Tokenizer, row: dict[str, Any]) -> Case:
    ours = keyword_stop(tokenizer, row["keywords"], row["prompt_ids"], row["output_ids"])
    return _exact(name, [ours], [row["stops_after"]])


def _prompt_cases(data: dict[str, Any], tokenizers: Tokenizers) -> Iterator[Case]:
    for name, facts in data["templates"].items():
        yield from guarded(f"b/templates/{name}", _template_facts, name, facts)
    for row in data["cases"]:
        name = f"b/conv_prompts/{row['template']}/{row['variant']}"
        yield from guarded(name, _prompt, name, row)


def _template_facts(name: str, facts: dict[str, Any]) -> Case:
    template = get(name)
    bare = facts["system"].removeprefix("<|im_start|>system\n")
    ours = [template.system, 2 * len(template.examples)]
    return _exact(f"b/templates/{name}", ours, [bare, facts["n_messages"]])


def _prompt(name: str, row: dict[str, Any]) -> Case:
    template = get(row["template"])
    messages, answer_open = _messages(template, row["messages"])
    try:
        ours = prompt_text(template, messages, answer_open=answer_open)
    except PaddleMixError as error:
        ours = f"{type(error).__name__}: {error}"
    if "error" in row:
        return Case(name, 0.0, 0.0, "deviates", f"the original raises {row['error']}; ours: {ours!r:.80}")
    return _exact(name, ours, row["prompt"])


def _messages(template: Template, rows: Sequence[Any]) -> tuple[list[Message], bool]:
    """Messages of a case, and whether it ends with an open answer. ``["TUPLE", text]`` is a turn with an image."""
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
        yield from guarded(name, _trained, name, row, tokenizers)


def _read(name: str, row: dict[str, Any]) -> tuple[Message, ...]:
    """The row's messages; its images are only counted here."""
    turns = {"conversations": row["conversations"]}
    return read_row(turns, Place(name, ""), MarkRules(mark_without_images="text")).messages


def _trained(name: str, row: dict[str, Any], tokenizers: Tokenizers) -> Case:
    tokenizer = tokenizers.flags(row["legacy"], row["fast"])
    if row["mm_use_im_patch_token"]:
        tokenizer.add_special([IMAGE_PATCH_TOKEN])
    if row["mm_use_im_start_end"]:
        tokenizer.add_special(["<im_start>", "<im_end>"])
    if row["chatml_tokens"]:
        tokenizer.add_special(["<|im_start|>", "<|im_end|>"])
        tokenizer.add_bos = False
    template = get(row["version"], training=True)
    messages = placed_messages(
        _read(name, row),
        layout=template,
        images=int(row["has_image"]),
        use_im_start_end=row["mm_use_im_start_end"],
    )
    ours = render(template, messages, tokenizer, answer_open=False, specials=True, images=row["has_image"])
    return _training_case(name, row, ours, tokenizer, messages)


def _training_case(
    name: str, row: dict[str, Any], ours: Rendered, tokenizer: Tokenizer, messages: list[Message]
) -> Case:
    # The original cuts rows without an image when it tokenizes, and rows with one only in the collator.
    end = None if row["has_image"] else row["model_max_length"]
    ids, labels = ours.ids[:end], ours.labels[:end]
    if ids != row["input_ids"]:
        return _exact(f"{name} ids", ids, row["input_ids"])
    if labels == row["labels"]:
        return Case(name, 0.0, 0.0, "ok")
    fault = learnt_fault(ours, tokenizer, messages)
    if fault:
        return Case(name, 1.0, 0.0, "fail", fault)
    differ = float(sum(a != b for a, b in zip(labels, row["labels"], strict=True)))
    if row["stdout"].strip() and row["n_target"] == 0 and set(row["labels"]) == {IGNORE_INDEX}:
        return Case(name, differ, 0.0, "deviates", LOST)
    if _slid_labels(row, ours, tokenizer) == row["labels"]:
        return Case(name, differ, 0.0, "deviates", SLID)
    return Case(name, differ, 0.0, "fail", "labels differ where the original's are sound")


def learnt_fault(ours: Rendered, tokenizer: Tokenizer, messages: Sequence[Message]) -> str:
    """Empty when what is learnt is every answer in order with only its end mark behind it; else the fault.

    For rows that the original loses: nothing of its labels is left to compare ours with.
    """
    wrong = [
        i for i, pair in enumerate(zip(ours.ids, ours.labels, strict=True)) if pair[1] not in (IGNORE_INDEX, pair[0])
    ]
    if wrong:
        return f"position {wrong[0]} is to learn {ours.labels[wrong[0]]} where {ours.ids[wrong[0]]} stands"
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
    """Ids and labels of the original's collated training rows (their images belong to family a)."""
    rows_file = folder / "b_prompts" / "train_data.json"
    if not rows_file.is_file():
        return
    rows = json.loads(rows_file.read_text(encoding="utf-8"))
    tokenizer = Tokenizers(folder).named("slow_legacy_false")
    for path in sorted((folder / "b_prompts").glob("dataset_batch_*.npz")):
        yield from guarded(f"b/{path.stem}", _batch_file, path, rows, tokenizer)


def _batch_file(path: Path, rows: list[dict[str, Any]], tokenizer: Tokenizer) -> Iterator[Case]:
    data = np.load(path)
    version = path.stem.removeprefix("dataset_batch_").rpartition("_")[0]
    return _collated(path.stem, data, [_sample(row, version, tokenizer) for row in rows], tokenizer.pad_id)


def _sample(row: dict[str, Any], version: str, tokenizer: Tokenizer) -> Rendered:
    template, images = get(version, training=True), int("image" in row)
    messages = placed_messages(_read(version, row), layout=template, images=images)
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
                yield from guarded(f"b/generate/{name}/{i}", _prompt_ids, f"b/generate/{name}/{i}/ids", tokenizer, row)
        if case.get("template") and "clean" in name:
            yield from guarded(f"b/generate/{name}", _history, f"b/generate/{name}", case, tokenizer)


def _prompt_ids(name: str, tokenizer: Tokenizer, row: dict[str, Any]) -> Case:
    return _exact(name, tokenizer.encode_with_images(row["prompt"]), row["input_ids"])


def _history(name: str, case: dict[str, Any], tokenizer: Tokenizer) -> Iterator[Case]:
    """Rounds of a clean chat rendered from messages: the questions are cut out of the prompts."""
    template = get(case["template"])
    messages: list[Message] = []
    for i, row in enumerate(case["rounds"]):
        before = prompt_text(template, messages, answer_open=False) if messages else ""
        mark = unused_text(row["prompt"], before)
        probe = prompt_text(template, [*messages, Message("user", mark)], answer_open=True)
        front, back = probe.split(mark)
        question = row["prompt"][len(front) : len(row["prompt"]) - len(back)]
        messages.append(Message("user", question))
        ours = render(template, messages, tokenizer, answer_open=True)
        yield _exact(f"{name}/{i}/text", ours.text, row["prompt"])
        yield _exact(f"{name}/{i}/rendered", [len(before) <= len(ours.text), ours.ids], [True, row["input_ids"]])
        messages.append(Message("assistant", row["decode_skip_strip"]))
