# SPDX-License-Identifier: Apache-2.0
"""The benchmarks by name: how their files become questions, how answers find their questions, and who scores them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from paddlemix.eval import question_files as files
from paddlemix.eval.answer_files import AnswerRecord
from paddlemix.eval.scorers.boxes import REFCOCO
from paddlemix.eval.scorers.choices import CHOICE, MMBENCH, SCIENCEQA, SEED
from paddlemix.eval.scorers.gqa import GQA
from paddlemix.eval.scorers.judged import LLAVA_BENCH, MM_VET, QA90
from paddlemix.eval.scorers.mme import MME, mme_key
from paddlemix.eval.scorers.pope import POPE
from paddlemix.eval.scorers.score import Question, Scorer
from paddlemix.eval.scorers.texts import EXACT, ROUGE_L
from paddlemix.eval.scorers.views import VIEWS
from paddlemix.eval.scorers.vqa import TEXTVQA, VQA, textvqa_key
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.registry import nearest
from paddlemix.utils.shown import shown

ALL = "all"
"""In the place of a benchmark's name: every benchmark that has a folder below that of the data."""
CUSTOM = "custom"
"""In the place of a benchmark's name: own data, scored by every rule that fits the rows."""

Keys = Callable[[AnswerRecord], str]
"""The key of the question that an answer belongs to."""


def _by_id(folder: Path) -> Keys:
    return lambda answer: str(answer.question_id)


def _textvqa(folder: Path) -> Keys:
    def key(answer: AnswerRecord) -> str:
        found = textvqa_key(str(answer.question_id), answer.prompt)
        if found is None:
            raise DataError(
                f'{answer.where}: /prompt: "{shown(answer.prompt, 80)}" is none of TextVQA\'s forms (the question in '
                "the first of two lines, or of three with the OCR tokens), so that the question cannot be found"
            )
        return found

    return key


def _mme(folder: Path) -> Keys:
    return lambda answer: mme_key(str(answer.question_id), answer.prompt)


def _vizwiz(folder: Path) -> Keys:
    images = files.vizwiz_images(folder)
    return lambda answer: images.get(str(answer.question_id), str(answer.question_id))


@dataclass(frozen=True)
class Benchmark:
    """``questions`` is None where its authors or a judge score it; ``unscored`` says so."""

    name: str
    title: str
    scorer: Scorer | None = None
    questions: Callable[[Path], list[Question]] | None = None
    keys: Callable[[Path], Keys] = _by_id
    unscored: str = ""


_OWN = "own data: "
_REVIEWED = "a judge reviews it beside a reference: eval review, then eval summarize"
_TABLE = (
    Benchmark("vqav2", "VQAv2", VQA, files.vqav2),
    Benchmark("gqa", "GQA", GQA, files.gqa),
    Benchmark("vizwiz", "VizWiz", VQA, files.vizwiz, _vizwiz),
    Benchmark("scienceqa", "ScienceQA", SCIENCEQA, files.scienceqa),
    Benchmark("textvqa", "TextVQA", TEXTVQA, files.textvqa, _textvqa),
    Benchmark("pope", "POPE", POPE, files.pope),
    Benchmark("mme", "MME", MME, files.mme, _mme),
    Benchmark("mmbench", "MMBench", MMBENCH, files.mmbench),
    Benchmark("mmbench-cn", "MMBench-CN", MMBENCH, files.mmbench_cn),
    Benchmark("seed", "SEED-Bench", SEED, files.seed),
    Benchmark("refcoco", "RefCOCO", REFCOCO, files.refcoco),
    Benchmark("mm-vet", "MM-Vet", MM_VET, unscored="a judge grades it: eval judge, or its authors' (eval upload)"),
    Benchmark("llava-bench", "LLaVA-Bench (in the wild)", LLAVA_BENCH, unscored=_REVIEWED),
    Benchmark("qa90", "LLaVA's 90 questions on COCO", QA90, unscored=_REVIEWED),
    Benchmark("mv-llava", "MV-LLaVA's quality, scale and style", VIEWS, files.objects),
    Benchmark("exact", _OWN + "exact match", EXACT, files.own),
    Benchmark("choice", _OWN + "choice letters", CHOICE, files.own_choice),
    Benchmark("vqa", _OWN + "VQA accuracy", VQA, files.own_vqa),
    Benchmark("rouge-l", _OWN + "ROUGE-L", ROUGE_L, files.own),
)
BENCHMARKS = {benchmark.name: benchmark for benchmark in _TABLE}
ALIASES = {"sqa": "scienceqa", "seed-bench": "seed", "seedbench": "seed", "mmvet": "mm-vet", "mmbench_cn": "mmbench-cn",
           "vqav2_val": "vqav2", "llavabench": "llava-bench",
           "llava-bench-in-the-wild": "llava-bench", "mv": "mv-llava", "textvqa_val": "textvqa"}  # fmt: skip
"""What LLaVA's folders and other projects call them."""


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of a name, in any letters; ConfigError names the nearest one."""
    key = name.lower()
    key = ALIASES.get(key, key)
    if key not in BENCHMARKS:
        hint = nearest(key, list(BENCHMARKS))
        raise ConfigError(f'unknown benchmark "{shown(name, 80)}"{hint} (known: {", ".join(BENCHMARKS)})')
    return BENCHMARKS[key]
