# SPDX-License-Identifier: Apache-2.0
"""Comparisons and reports as pictures and pages, with the published figures beside ours."""

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from paddlemix.__main__ import main
from paddlemix.eval import differences, published, running
from paddlemix.eval.compare import Pair
from paddlemix.eval.differences import chosen
from paddlemix.eval.scorers.score import Result
from paddlemix.imaging.drawing import Pen
from tests.eval import eval_kit as kit

EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(2)>"


def run(*words: object) -> int:
    return main(["eval", *map(str, words)])


def two_scores(folder: Path) -> tuple[Path, Path, Path]:
    """POPE twice: B is wrong where A is right in the first question, and says nothing nice in the last."""
    data, answers = kit.pope(folder / "data")
    other = [kit.answer(0, "No"), *answers[1:-1], kit.answer(11, EVIL)]
    scores = []
    for name, given in (("a", answers), ("b", other)):
        path = folder / "scores" / f"{name}.json"
        rows = [{**row, "model_id": name} for row in given]
        file = kit.write_lines(folder / f"{name}.jsonl", rows)
        run("score", "pope", "--answers", file, "--data", data, "--output", path, "--resamples", 20)
        scores.append(path)
    return data, scores[0], scores[1]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href") or name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


def page(path: Path) -> Page:
    found = Page()
    found.feed(path.read_text(encoding="utf-8"))
    return found


def test_differing_answers_are_shown_with_their_questions_and_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, a, b = two_scores(tmp_path)
    (data / "val2014").mkdir()
    for n in range(4):
        Image.new("RGB", (40, 20 + n), "#ff8800").save(data / "val2014" / f"COCO_{n}.jpg")
    png, html = tmp_path / "c.png", tmp_path / "deep" / "c.html"
    assert run("compare", a, b, "--data", data, "--output", png, "--output", html, "--resamples", 20) == 0
    assert "note:" not in capsys.readouterr().err
    found = page(html)
    assert found.tags.count("img") == 2
    assert "script" not in found.tags
    assert all(link.startswith("data:image/jpeg;base64,") for link in found.links)
    assert EVIL in found.text
    assert "Is there a adversarial thing 3 in the image?" in found.text
    with Image.open(png) as sheet:
        assert sheet.size == (1960, 2 * (92 + 2 * 144 + 24))
        orange = sum(
            abs(r - 255) + abs(g - 136) + b < 30 for r, g, b in sheet.convert("RGB").resize((490, 202)).getdata()
        )
    assert 2 * 60 * 30 * 0.8 < orange < 2 * 60 * 36 * 1.1, "two images of 40 x 20, not stretched to squares"


def test_without_images_the_sheet_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, a, b = two_scores(tmp_path)
    html = tmp_path / "c.html"
    assert run("compare", a, b, "--output", html, "--resamples", 20) == 0
    assert "give their folder with --data" in capsys.readouterr().err
    assert "img" not in page(html).tags
    assert run("compare", a, b, "--data", data, "--output", html, "--resamples", 20) == 0
    assert "COCO_3.jpg" in page(html).text, "an image that is not there is named"
    assert run("compare", a, b, "--data", tmp_path, "--output", html, "--resamples", 20) == 2


def test_the_sheet_shows_the_value_of_an_answer_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(Pen, "text", lambda pen, at, text, *more: drawn.append(text))
    pair = Pair("q", ("yes",), *(Result("q", "word " * 300, "", ("yes",), value, {}, "") for value in (0.25, 0.75)))
    differences._row(Pen(980, 200), pair, differences.Shown("Which?"), 0)
    assert any(text.endswith("...") for text in drawn)
    assert any("0.25" in text for text in drawn)
    assert any("0.75" in text for text in drawn)


def test_two_models_of_one_name_have_rows_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Folders are often called ``model``; the records beside the answers say which one it was."""
    data, rows = kit.pope(tmp_path / "data")
    for path in ("a/model", "b/model"):
        folder = tmp_path / "scores" / path
        file = kit.write_lines(folder / "answers.jsonl", [{**row, "model_id": "model"} for row in rows])
        names = ("pope",) if path == "a/model" else ("pope", "exact")
        about = {"settings": {"model_path": path}, "about": {}, "form": running.FORM}
        kit.write_json(folder / "answers.jsonl.run.json", about)
        own = kit.write_lines(
            folder / "own.jsonl", [{"question_id": row["question_id"], "question": "?", "answer": "x"} for row in rows]
        )
        for name in names:
            where = data if name == "pope" else own
            words = ("--answers", file, "--data", where, "--output", folder / f"{name}.json", "--resamples", 20)
            assert run("score", name, *words) == 0, capsys.readouterr().err
    (tmp_path / "scores" / "b" / "model" / "pope.json").unlink()
    capsys.readouterr()
    assert run("report", tmp_path / "scores") == 0
    lines = [line for line in capsys.readouterr().out.split("\n") if line.startswith("| model ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == ["| model", "| model (b/model)"]


def test_a_score_of_some_questions_and_one_that_is_none_are_told_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, rows = kit.pope(tmp_path / "data")
    file = kit.write_lines(tmp_path / "answers.jsonl", [{**row, "text": "No"} for row in rows])
    about = {"settings": {"model_path": "tiny", "limit": 12}, "about": {}, "form": running.FORM}
    kit.write_json(tmp_path / "answers.jsonl.run.json", about)
    words = ("--answers", file, "--data", data, "--output", tmp_path / "scores" / "s.json", "--resamples", 20)
    assert run("score", "pope", *words) == 0
    capsys.readouterr()
    assert run("report", tmp_path / "scores") == 0
    assert "| tiny | n/a [--limit 12] |" in capsys.readouterr().out


def test_half_of_the_chosen_answers_are_gains_and_half_are_losses() -> None:
    def result(value: float) -> Result:
        return Result("k", "", "", (), value, {}, "")

    pairs = [Pair(str(n), (), result(n / 100), result(0.5)) for n in range(100)]
    assert [pair.key for pair in chosen(pairs, 5)] == ["0", "1", "2", "98", "99"]
    assert chosen(pairs[:5], 5) == pairs[:5]


def test_a_report_is_written_in_all_forms_with_the_published_figures_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_scores(tmp_path)
    outputs = [tmp_path / f"r.{ending}" for ending in ("md", "json", "png")]
    words = [word for path in outputs for word in ("--output", path)]
    assert run("report", tmp_path / "scores", "--published", *words) == 0
    text = outputs[0].read_text()
    assert "| LLaVA-1.5-7B (published) | 85.90 |" in text
    assert "- ShareGPT4V, docs/ModelZoo.md" not in text, "it has no figure of POPE"
    value = json.loads(outputs[1].read_text())
    assert value["a.json"]["metrics"]["mean_f1"]["value"] == pytest.approx(0.8)
    row: dict[str, Any] = next(one for one in value["published"] if one["model"] == "LLaVA-1.5-7B")
    assert row == {"model": "LLaVA-1.5-7B", "source": "LLaVA, docs/MODEL_ZOO.md", "values": {"pope": 0.859}}
    with Image.open(io.BytesIO(outputs[2].read_bytes())) as picture:
        assert picture.width == 1960
        with_published = picture.height
    capsys.readouterr()
    assert run("report", tmp_path / "scores", "--output", outputs[2], "--json") == 0
    assert "published" not in json.loads(capsys.readouterr().out)
    with Image.open(outputs[2]) as picture:
        assert picture.height < with_published


def test_a_comparison_stands_beside_published_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, a, b = two_scores(tmp_path)
    capsys.readouterr()
    assert run("compare", a, b, "--published", "--resamples", 20) == 0
    assert "| LLaVA-1.6-7B (Vicuna) | 86.50 | LLaVA, docs/MODEL_ZOO.md |" in capsys.readouterr().out
    assert run("compare", a, b, "--published", "--json", "--resamples", 20) == 0
    value = json.loads(capsys.readouterr().out)
    assert {"model": "LLaVA-1.5-13B", "value": 0.859, "source": "LLaVA, docs/MODEL_ZOO.md"} in value["published"]


def test_published_figures_are_of_known_benchmarks_and_have_a_source() -> None:
    from paddlemix.eval.benchmarks import BENCHMARKS
    from paddlemix.eval.tables import percent

    for row in published.PUBLISHED:
        assert row.source
        for name, value in row.values.items():
            assert BENCHMARKS[name].scorer is not None
            assert 0.2 < value < 1 if percent(name) else 1000 < value < 2000


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_other_endings_are_refused_before_anything_is_read(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("a.json", "b.json") if verb == "compare" else (".",)
    assert run(verb, *files, "--output", "x.md", "--output", "x.pdf") == 2
    assert "--output x.pdf: expected a file that ends with .md, .json, .png" in capsys.readouterr().err
