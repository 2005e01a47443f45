# SPDX-License-Identifier: Apache-2.0
"""Yes or no out of an answer, by the rules of POPE, MME and the harnesses."""

import re

from paddlemix.eval.scorers.words import ONE_COMMA_BETWEEN_DIGITS, without_punctuation

_CHINESE = re.compile("[\u4e00-\u9fa5]")
UNKNOWN = "other"
"""What is neither yes nor no."""


def pope_yes_no(text: str) -> str:
    """LLaVA's rule for POPE: "no" when a word of the first sentence is No, no or not, else "yes", whatever it says.

    Words are what stands between single spaces, without commas; "NO" and "No!" are no such words.
    """
    words = text.split(".", 1)[0].replace(",", "").split(" ")
    return "no" if {"No", "not", "no"} & set(words) else "yes"


def exact_yes_no(text: str) -> str:
    """lmms-eval's rule for POPE: the answer is the word alone, in any letters, or neither."""
    found = text.lower().strip()
    return found if found in ("yes", "no") else UNKNOWN


def mme_yes_no(text: str) -> str:
    """MME's rule: what the first four characters hold, "yes" before "no"."""
    head = text.lower()[:4]
    return "yes" if "yes" in head else "no" if "no" in head else UNKNOWN


def mme_yes_no_lmms(text: str) -> str:
    """lmms-eval's rule for MME: as MME's, without spaces around and periods, and with "y" and "n" alone."""
    found = text.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(found) or mme_yes_no(found)


def mme_yes_no_internvl(text: str) -> str:
    """InternVL's rule for MME: Chinese words and true and false count; then MME's, without Chinese characters."""
    found = text.replace("\n", "")
    for chinese, word in (("不是", "No"), ("是", "Yes"), ("否", "No")):
        found = found.replace(chinese, word)
    found = found.lower().replace("true", "yes").replace("false", "no")
    return mme_yes_no(_CHINESE.sub("", found))


def yes_no_words(text: str) -> str:
    """VLMEvalKit's rule: one of the two words is there and the other is not."""
    words = without_punctuation(text.lower(), ONE_COMMA_BETWEEN_DIGITS).split()
    found = {"yes", "no"} & set(words)
    return found.pop() if len(found) == 1 else UNKNOWN
