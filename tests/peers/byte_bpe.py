# SPDX-License-Identifier: Apache-2.0
"""Two small byte-level tokenizers, and what transformers makes of texts with them.

    python tests/peers/byte_bpe.py tests/data/byte_bpe

Needs tokenizers and transformers (5.24 made the files here). The splitting patterns and the special tokens are those of
Qwen2 and Llama-3; the vocabularies are learnt from the lines of this file.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")
QWEN_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)
LINES = (
    "You are a helpful assistant. What is shown in this picture? A red square stands on the left.",
    "system user assistant The image shows two people who'll walk through the streets of a city at night.",
    "它是一只猫。这张图片里有什么？ Größe Straße café naïve 12 345 6789 3.14159",
    "def answer(question):\n    return {'text': question}\n\nprint(answer(\"why\"))",
)
TEXTS = (
    "", " ", "\n", "\n\n", "Hello world", "  two  spaces ", "What's shown?\nA red square.", "I'LL don't We've",
    "12345 3.14", "a\r\n\r\nb \t c", "它是一只猫。", "e\u0301 is é in two characters",
    "\U0001f600\U0001f468\u200d\U0001f469",
    "<|im_start|>user\nHi<|im_end|>\n", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "x<|im_end|>y <|eot_id|> z", "<image>\nWhat is this?", "trailing space ", "\u00a0no\u2003break\u3000space",
    "def f(x):\n\treturn x  # {'a': [1, 2]}",
)  # fmt: skip


def learn(kind: str) -> Tokenizer:
    """A tokenizer with the pipeline of the family ``kind``."""
    qwen = kind == "qwen2"
    found = Tokenizer(models.BPE(ignore_merges=not qwen))
    found.normalizer = normalizers.NFC() if qwen else None
    steps = [
        pre_tokenizers.Split(Regex(QWEN if qwen else LLAMA), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    found.pre_tokenizer = pre_tokenizers.Sequence(steps)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, initial_alphabet=alphabet, show_progress=False)
    found.train_from_iterator(LINES * 4, trainer)
    found.add_special_tokens([AddedToken(text, normalized=False) for text in (QWEN_TOKENS if qwen else LLAMA_TOKENS)])
    if not qwen:
        begin = LLAMA_TOKENS[0]
        template = processors.TemplateProcessing(f"{begin} $A", special_tokens=[(begin, found.token_to_id(begin))])
        found.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return found


def main(target: Path) -> None:
    """Write a folder for each family, and ``expected.json``."""
    roles = {
        "qwen2": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        "llama3": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    }
    for kind, named in roles.items():
        folder = target / kind
        folder.mkdir(parents=True, exist_ok=True)
        theirs = PreTrainedTokenizerFast(tokenizer_object=learn(kind), clean_up_tokenization_spaces=False, **named)
        theirs.save_pretrained(folder)
        theirs = PreTrainedTokenizerFast.from_pretrained(folder)
        rows = []
        for text in TEXTS:
            found = theirs(text, return_offsets_mapping=True, add_special_tokens=False)
            ids = found["input_ids"]
            rows.append({
                "text": text,
                "ids": ids,
                "with_bos": theirs(text)["input_ids"],
                "starts": [begin for begin, _ in found["offset_mapping"]],
                "decoded": theirs.decode(ids),
                "skipped": theirs.decode(ids, skip_special_tokens=True),
                "cut": theirs.decode(ids[1:-1]),
            })  # fmt: skip
        (folder / "expected.json").write_text(json.dumps(rows, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
