# SPDX-License-Identifier: Apache-2.0
"""The rules of the benchmarks' own scripts, restated as slowly and literally as they can be.

Written from what those scripts do, with exact fractions and loops over characters, and nothing shared with the scorers.
"""

from fractions import Fraction

SHORTENED = """
aint ain't arent aren't cant can't couldve could've couldnt couldn't couldn'tve couldn't've couldnt've couldn't've
didnt didn't doesnt doesn't dont don't hadnt hadn't hadnt've hadn't've hadn'tve hadn't've hasnt hasn't havent haven't
hed he'd hed've he'd've he'dve he'd've hes he's howd how'd howll how'll hows how's Id've I'd've I'dve I'd've Im I'm
Ive I've isnt isn't itd it'd itd've it'd've it'dve it'd've itll it'll let's let's maam ma'am mightnt mightn't
mightnt've mightn't've mightn'tve mightn't've mightve might've mustnt mustn't mustve must've neednt needn't notve
not've oclock o'clock oughtnt oughtn't ow's'at 'ow's'at 'ows'at 'ow's'at 'ow'sat 'ow's'at shant shan't shed've
she'd've she'dve she'd've she's she's shouldve should've shouldnt shouldn't shouldnt've shouldn't've shouldn'tve
shouldn't've somebody'd somebodyd somebodyd've somebody'd've somebody'dve somebody'd've somebodyll somebody'll
somebodys somebody's someoned someone'd someoned've someone'd've someone'dve someone'd've someonell someone'll
someones someone's somethingd something'd somethingd've something'd've something'dve something'd've somethingll
something'll thats that's thered there'd thered've there'd've there'dve there'd've therere there're theres there's
theyd they'd theyd've they'd've they'dve they'd've theyll they'll theyre they're theyve they've twas 'twas wasnt
wasn't wed've we'd've we'dve we'd've weve we've werent weren't whatll what'll whatre what're whats what's whatve
what've whens when's whered where'd wheres where's whereve where've whod who'd whod've who'd've who'dve who'd've
wholl who'll whos who's whove who've whyll why'll whyre why're whys why's wont won't wouldve would've wouldnt
wouldn't wouldnt've wouldn't've wouldn'tve wouldn't've yall y'all yall'll y'all'll y'allll y'all'll yall'd've
y'all'd've y'alld've y'all'd've y'all'dve y'all'd've youd you'd youd've you'd've you'dve you'd've youll you'll
youre you're youve you've
"""
WHOLE = dict(zip(SHORTENED.split()[::2], SHORTENED.split()[1::2], strict=True))
COUNTED = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]


# ---- POPE ---------------------------------------------------------------------------------------------------------


def pope_says_no(text: str) -> bool:
    sentence = ""
    for letter in text:
        if letter == ".":
            break
        if letter != ",":
            sentence += letter
    word, words = "", []
    for letter in sentence + " ":
        if letter == " ":
            words.append(word)
            word = ""
        else:
            word += letter
    return any(word in ("No", "not", "no") for word in words)


def pope(texts: list[str], labels: list[str]) -> dict[str, Fraction | None]:
    """None where the original divides by zero."""
    table = {"TP": 0, "FP": 0, "TN": 0, "FN": 0}
    for text, label in zip(texts, labels, strict=True):
        says_no = pope_says_no(text)
        right = says_no == (label == "no")
        table[("T" if right else "F") + ("N" if says_no else "P")] += 1
    tp, fp, tn, fn = table["TP"], table["FP"], table["TN"], table["FN"]
    precision = Fraction(tp, tp + fp) if tp + fp else None
    recall = Fraction(tp, tp + fn) if tp + fn else None
    both = None if precision is None or recall is None else precision + recall
    return {
        "accuracy": Fraction(tp + tn, tp + tn + fp + fn),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / both if both else None,
        "yes_ratio": Fraction(tp + fp, len(texts)),
    }


# ---- ScienceQA ----------------------------------------------------------------------------------------------------


def science_choice(text: str, choices: int) -> int:
    """The index of the choice, -1 for none."""
    letter = "FAILED"
    for option in ["A", "B", "C", "D", "E"]:
        if text == option or (len(text) >= 3 and text.startswith(option + ". ")):
            letter = option
    if letter == "FAILED":
        opening, said, place = "The answer is ", [], 0
        while place < len(text):
            rest = text[place:]
            fits = rest.startswith(opening) and len(rest) >= len(opening) + 2
            if fits and "A" <= rest[len(opening)] <= "Z" and rest[len(opening) + 1] != "\n":
                said.append(rest[len(opening)])
                place += len(opening) + 2
            else:
                place += 1
        if len(said) == 1:
            letter = said[0]
    offered = ["A", "B", "C", "D", "E"][:choices]
    return offered.index(letter) if letter in offered else -1


def science(texts: list[str], answers: list[int], choices: list[int], images: list[bool]) -> tuple[Fraction, Fraction]:
    hits = [science_choice(text, many) == answer for text, many, answer in zip(texts, choices, answers, strict=True)]
    seen = [hit for hit, image in zip(hits, images, strict=True) if image]
    return Fraction(sum(hits), len(hits)), Fraction(sum(seen), len(seen))


# ---- VQA ----------------------------------------------------------------------------------------------------------


def marks_gone(text: str) -> str:
    numeric = False
    for place in range(len(text)):  # a run of commas between two digits
        if text[place].isdecimal():
            end = place + 1
            while end < len(text) and text[end] == ",":
                end += 1
            numeric = numeric or (end > place + 1 and end < len(text) and text[end].isdecimal())
    padded = "\0" + text + "\0"
    spaced = {padded[i] for i in range(1, len(padded) - 1) if " " in (padded[i - 1], padded[i + 1])}
    found = ""
    for letter in text:
        if letter in MARKS:
            found += "" if numeric or letter in spaced else " "
        else:
            found += letter
    left, result = 32, ""
    for place, letter in enumerate(found):
        followed = place + 1 < len(found) and found[place + 1].isdecimal()
        if letter == "." and not followed and left:
            left -= 1
        else:
            result += letter
    return result


def articles_gone(text: str) -> str:
    result = []
    for word in text.lower().split():
        counted = COUNTED.get(word, word)
        if counted not in ("a", "an", "the"):
            result.append(WHOLE.get(counted, counted))
    return " ".join(result)


def evalai(text: str) -> str:
    text, spread, place = text.lower(), "", 0
    kept = "".join(letter for letter in text if letter not in ",?")
    while place < len(kept):
        if kept[place : place + 2] == "'s":
            spread += " 's"
            place += 2
        else:
            spread += kept[place]
            place += 1
    spread = spread.strip()
    spread = "".join(" " if letter in "\n\t" else letter for letter in spread).strip()
    return articles_gone(marks_gone(spread))


def agreement(answer: str, people: list[str]) -> Fraction:
    total = Fraction(0)
    for place in range(len(people)):
        others = people[:place] + people[place + 1 :]
        total += min(Fraction(1), Fraction(sum(other == answer for other in others), 3))
    return total / len(people)


def m4c(text: str, people: list[str]) -> Fraction:
    assert len(people) == 10
    return agreement(evalai(text), [evalai(person) for person in people])


def vqa_challenge(text: str, people: list[str]) -> Fraction:
    """The evaluation of the VQA challenge: processing only where people disagree."""

    def flat(value: str) -> str:
        return "".join(" " if letter in "\n\t" else letter for letter in value).strip()

    text, people = flat(text), [flat(person) for person in people]
    if any(person != people[0] for person in people):
        text, people = articles_gone(marks_gone(text)), [articles_gone(marks_gone(person)) for person in people]
    return agreement(text, people)


def vqa_lmms(text: str, people: list[str]) -> Fraction:
    """lmms-eval's evaluation of VQAv2: that of the challenge, with an answer that was processed before."""
    return vqa_challenge(evalai(text), people)


def textvqa(results: list[dict], annotations: list[dict]) -> Fraction:
    """LLaVA's loop over the answers, whose questions come out of the prompts."""
    scores = []
    for result in results:
        lines = result["prompt"].split("\n")
        if result["prompt"].startswith("OCR tokens: "):
            begin = result["prompt"].index("Question: ") + len("Question: ")
            question = result["prompt"][begin : result["prompt"].index(" Short answer:", begin)]
        elif len(lines) == 3 and lines[0].startswith("Reference OCR token:"):
            question = lines[1]
        else:
            question = lines[0]
        people = None
        for annotation in annotations:  # the last one of a question stands
            if annotation["image_id"] == result["question_id"] and annotation["question"].lower() == question.lower():
                people = annotation["answers"]
        assert people is not None
        scores.append(m4c(result["text"], people))
    return sum(scores, Fraction(0)) / len(scores)


# ---- MME ----------------------------------------------------------------------------------------------------------


def mme_reading(text: str) -> str:
    """The label of a line that ends with the answer: a line end stands behind it."""
    line = text.lower() + "\n"
    window = "".join(line[place] for place in range(min(4, len(line))))
    for place in range(len(window)):
        if window[place : place + 3] == "yes":
            return "yes"
    for place in range(len(window)):
        if window[place : place + 2] == "no":
            return "no"
    return "other"


def mme_task(lines: list[tuple[str, str]]) -> Fraction:
    """Points of one subtask from its lines (label, answer), of which each two are about one image."""
    right = [mme_reading(text) == label for label, text in lines]
    pairs = [right[place] and right[place + 1] for place in range(0, len(right), 2)]
    return Fraction(100 * sum(right), len(right)) + Fraction(100 * sum(pairs), len(pairs))


# ---- GQA ----------------------------------------------------------------------------------------------------------


def gqa(texts: list[str], truths: list[str], structural: list[str]) -> dict[str, Fraction]:
    kinds: dict[str, list[bool]] = {"accuracy": [], "open": [], "binary": []}
    for text, truth, kind in zip(texts, truths, structural, strict=True):
        while text.endswith("."):
            text = text[:-1]
        hit = text.lower() == truth
        kinds["accuracy"].append(hit)
        kinds["open" if kind == "query" else "binary"].append(hit)
    return {name: Fraction(sum(hits), len(hits)) for name, hits in kinds.items() if hits}
