# SPDX-License-Identifier: Apache-2.0
"""Answers judged through an OpenAI-compatible address: reviews as LLaVA's, MM-Vet's grades, and all that goes wrong."""

import json
import random
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paddlemix.eval.__main__ import main
from paddlemix.eval.judge import mm_vet, summary
from paddlemix.eval.judge.endpoint import Endpoint, checked
from paddlemix.eval.judge.reviews import scores_in
from paddlemix.utils.errors import ConfigError
from tests.eval import judge_kit
from tests.eval.eval_kit import answer, write_lines
from tests.eval.judge_kit import judge

KEY = "PADDLEMIX_JUDGE_KEY"


def reviewing(folder: Path, url: str, *more: str, count: int = 4, bench: bool = True) -> list[str]:
    flags = judge_kit.reviews(folder, count, bench=bench)
    return [
        "review", *flags, "--output", str(folder / "r.jsonl"), "--base-url", url, "--judge-model", "j",
        "--workers", "1", *more,
    ]  # fmt: skip


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reviews_are_asked_and_written_as_by_llavas_script(tmp_path: Path) -> None:
    with judge(lambda body, n: f"8 {n}\nfine") as server:
        assert main(reviewing(tmp_path, server.url, count=2)) == 0
    wanted = (
        "[Context]\nIt is 1.\n\n[Question]\nWhat is 1?\n\n[Assistant 1]\ngpt 1\n\n[End of Assistant 1]\n\n"
        "[Assistant 2]\nours 1\n\n[End of Assistant 2]\n\n[System]\nRate detail.\n\n"
    )
    asked = server.seen[1]
    assert [one["role"] for one in asked["messages"]] == ["system", "user"]
    assert asked["messages"][1]["content"] == wanted
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("j", 0.2, 1024)
    assert server.paths[0] == "/v1/chat/completions"
    assert (tmp_path / "r.jsonl").read_text().splitlines()[1] == (
        '{"id": 2, "question_id": 1, "answer1_id": "g1", "answer2_id": "o1", "category": "llava_bench_detail", '
        '"content": "8 2\\nfine", "tuple": [8.0, 2.0]}'
    )


def test_the_90_questions_have_captions_and_boxes_before_them(tmp_path: Path) -> None:
    with judge(lambda body, n: "5 5") as server:
        assert main(reviewing(tmp_path, server.url, bench=False)) == 0
    text = server.seen[0]["messages"][1]["content"]
    assert text.startswith("[Context]\nA dog.\nA pet.\n\ndog: [0.1, 0.25, 0.5, 1.0]\n\n[Question]\n")
    assert lines(tmp_path / "r.jsonl")[0]["category"] == "conv"


@pytest.mark.parametrize(("convention", "context"), [("llava", "A\n \nc"), ("lmms-eval", "A c")])
def test_a_caption_that_is_one_text(tmp_path: Path, convention: str, context: str) -> None:
    """LLaVA's script joins its letters by line ends."""
    with judge(lambda body, n: "5 5") as server:
        args = reviewing(tmp_path, server.url, "--convention", convention, count=1)
        write_lines(tmp_path / "c.jsonl", [{"image": "0.jpg", "caption": "A c"}])
        assert main(args) == 0
    assert server.seen[0]["messages"][1]["content"].startswith(f"[Context]\n{context}\n\n[Question]")


def test_scores_are_read_by_the_rule_of_the_script() -> None:
    def original(review: str) -> list[float]:
        words, word = [], ""
        for letter in review.split("\n")[0] + " ":
            if letter in " ,":
                words.append(word)
                word = ""
            else:
                word += letter
        try:
            return [float(word) for word in words] if len(words) == 2 else [-1, -1]
        except ValueError:
            return [-1, -1]

    draw = random.Random(1)
    parts = [
        "8",
        "9",
        "10",
        "7.5",
        " ",
        " ",
        ",",
        "\n",
        "\t",
        "\r",
        "-1",
        "1_0",
        "Assistant",
        "/10",
        "é",
        "٣",
        "\u00a0",
    ]
    good = 0
    for _ in range(20_000):
        text = "".join(draw.choice(parts) for _ in range(draw.randint(0, 5)))
        found = scores_in(text)
        assert list(found or (-1, -1)) == original(text), repr(text)
        good += found is not None
    assert good > 300
    assert scores_in("nan 8") is None
    assert scores_in("8 inf") is None


def test_summaries_equal_the_script_where_every_review_has_scores(tmp_path: Path) -> None:
    draw = random.Random(2)
    for number in range(100):
        rows = [
            {"question_id": n, "category": draw.choice(("conv", "detail")),
             "tuple": [draw.randint(1, 20) / 2, draw.randint(1, 20) / 2], "content": ""}
            for n in range(draw.randint(1, 30))
        ]  # fmt: skip
        found = summary.summarize(write_lines(tmp_path / f"review_{number}.jsonl", rows), ["3"], resamples=1) \
            if len(rows) > 4 else None  # fmt: skip
        if found is None:
            continue
        for row in found.rows:
            kept = [
                one["tuple"] for one in rows if one["question_id"] != 3 and row.category in ("all", one["category"])
            ]
            first, second = (round(x, 3) for x in np.asarray(kept).mean(0).tolist())
            assert row.relative == row.original == round(second / first * 100, 1)
            assert row.reviews == len(kept)


def test_a_review_without_scores_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge(lambda body, n: "8, 9\nnice" if n == 2 else None if n == 3 else "8 4") as server:
        assert main(reviewing(tmp_path, server.url)) == 1
    told = capsys.readouterr().out
    assert "| all | 4 | 8.000 | 4.000 | 50.0 | 50.0 to 50.0 | 2 (with -1 for them: 42.9) |" in told
    assert '1: no two scores in the first line, "8, 9"' in told
    assert [one["tuple"] for one in lines(tmp_path / "r.jsonl")] == [[8, 4], [-1, -1], [-1, -1], [8, 4]]
    assert main(["summarize", "--files", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "s.json")]) == 1
    assert main(["report", str(tmp_path)]) == 0
    assert "| r | 50.00 (50.00 to 50.00) |" in capsys.readouterr().out


def test_answers_that_are_missing_or_irregular_shift_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge(lambda body, n: "8 4") as server:
        args = reviewing(tmp_path, server.url, "--json", count=5)
        failed = {**answer(3, ""), "metadata": {"error": "no image"}}
        given = [answer(4, "four"), answer(0, "old"), answer(0, "new"), failed, answer(1, " "), answer(77, "x")]
        write_lines(tmp_path / "ours.jsonl", given)
        assert main(args) == 1
    value = json.loads(capsys.readouterr().out)
    kinds = sorted((one["kind"], one["question_id"]) for one in value["problems"])
    assert kinds == [("duplicate", "0"), ("empty", "1"), ("failed", "3"), ("missing", "2"), ("unknown", "77")]
    assert [one["question_id"] for one in lines(tmp_path / "r.jsonl")] == [0, 1, 4]
    assert "new" in server.seen[0]["messages"][1]["content"]


def test_busy_servers_are_asked_again_and_the_answers_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr("threading.Event.wait", lambda self, seconds=None: waited.append(seconds))
    busy = {1: (429, {}, {"Retry-After": "7"}), 2: (503, b"<html>"), 4: (500, {})}
    with judge(lambda body, n: busy.get(n, "8 4")) as server:
        args = reviewing(tmp_path, server.url)
        server_thread_waits = list(waited)
        assert main(args) == 0
        assert len(server.seen) == 7
        assert main(args) == 0, "a second run"
        assert len(server.seen) == 7
        write_lines(tmp_path / "ours.jsonl", [answer(n, f"other {n}" if n == 2 else f"ours {n}") for n in range(4)])
        assert main(args) == 0
        assert len(server.seen) == 8, "the changed answer alone"
    assert [seconds for seconds in waited[len(server_thread_waits) :] if seconds in (7.0, 2.0, 1.0)] == [7.0, 2.0, 1.0]


def test_a_run_that_stops_goes_on_with_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    down = [True]
    with judge(lambda body, n: (500, {}) if down[0] and n > 2 else "8 4") as server:
        args = reviewing(tmp_path, server.url, "--attempts", "1", count=8)
        assert main(args) == 2
        assert "3 requests in a row had no answer" in capsys.readouterr().err
        assert len(server.seen) == 5
        assert not list(tmp_path.glob("*.html"))
        assert not (tmp_path / "r.jsonl").exists()
        cache = tmp_path / "r.jsonl.judge"
        cache.write_bytes(cache.read_bytes() + b'{"batch": 2, "rec')  # as a kill leaves it
        down[0] = False
        assert main(args) == 0
        assert len(server.seen) == 5 + 6
        whole = (tmp_path / "r.jsonl").read_bytes()
        assert main([*args, "--cache", str(tmp_path / "other"), "--workers", "3"]) == 0
        assert len(server.seen) == 5 + 6 + 8
    assert (tmp_path / "r.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("reply", "code", "told"),
    [
        ((401, {"error": {"message": "bad key sk-secret"}}), 2, "answers 401 (bad key ***); set the key"),
        ((404, b"<h1>no</h1>"), 2, "look at --base-url"),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), 2, "redirects are not followed"),
        ((200, b"<html>hello</html>"), 2, "none of a chat completion"),
        ((200, {"choices": []}), 2, "none of a chat completion"),
        ((400, {"error": {"message": "too long"}}), 2, "3 requests in a row"),
    ],
)
def test_what_an_endpoint_refuses_is_told_without_the_key(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reply: Any,
    code: int,
    told: str,
) -> None:
    monkeypatch.setenv(KEY, "sk-secret")
    with judge(lambda body, n: reply) as server:
        assert main(reviewing(tmp_path, server.url)) == code
    output = capsys.readouterr()
    assert told in output.err
    assert server.headers[0]["authorization"] == "Bearer sk-secret"
    assert len(server.seen) == (3 if reply[0] == 400 else 1)
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert "sk-secret" not in output.err + output.out
    assert b"sk-secret" not in kept


@pytest.mark.parametrize("verb", ["review", "judge"])
def test_no_score_follows_from_a_server_that_is_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    """Not even where fewer requests are open than end a run: a grade of 0 would be wrong."""
    write_lines(tmp_path / "a.jsonl", [answer(0, "x"), answer(1, "y"), answer(2, "z")])
    away = [True]
    with judge(lambda body, n: (503, {}) if away[0] and n > 1 else "1.0" if verb == "judge" else "8 4") as server:
        more = ("--attempts", "1")
        args = (
            judging(tmp_path, server.url, *more) if verb == "judge" else reviewing(tmp_path, server.url, *more, count=3)
        )
        assert main(args) == 2
        assert "2 of 3 requests had no answer" in (said := capsys.readouterr()).err
        assert said.out == ""
        assert not (tmp_path / "mm-vet-score.json").exists()
        assert not (tmp_path / "r.jsonl").exists()
        away[0] = False
        assert main(args) == 0
        assert len(server.seen) == 5


def test_reviews_without_any_score_have_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge(lambda body, n: "nice") as server:
        assert main(reviewing(tmp_path, server.url)) == 1
    assert "| all | 4 | n/a | n/a | n/a | n/a to n/a | 4 (with -1 for them: 100.0) |" in capsys.readouterr().out
    assert main(["summarize", "--files", str(tmp_path / "r.jsonl"), "--output", str(tmp_path / "s.json")]) == 2
    assert not (tmp_path / "s.json").exists()


def test_the_doctor_says_that_there_is_a_key_and_not_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from paddlemix.doctor.report import _own_flags

    monkeypatch.setenv(KEY, "sk-secret")
    told = repr(_own_flags())
    assert f"{KEY}=(set)" in told
    assert "sk-secret" not in told


def test_one_refused_request_is_named_and_asked_again_next_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with judge(lambda body, n: (400, {"error": {"message": "too long"}}) if n == 2 else "8 4") as server:
        args = reviewing(tmp_path, server.url)
        assert main(args) == 1
        assert "1: " in capsys.readouterr().out
        assert len(lines(tmp_path / "r.jsonl")) == 3
        assert main(args) == 0
        assert len(server.seen) == 5
    assert [one["question_id"] for one in lines(tmp_path / "r.jsonl")] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--base-url", "http://judge.example/v1"], "give an https address, or --allow-http"),
        (["--base-url", "ftp://127.0.0.1/v1"], "only http and https"),
        (["--base-url", "https://user:pw@127.0.0.1/v1"], "without user and password"),
        (["--base-url", "https://127.0.0.1/v1?x=1"], "without a query"),
        (["--judge-model", " "], "--judge-model is empty"),
        (["--workers", "0"], "--workers 0"),
        (["--attempts", "0"], "--attempts 0"),
        (["--timeout", "nan"], "--timeout nan"),
        (["--max-cost", "1"], "give --price-in and --price-out"),
        (["--price-in", "1e9", "--price-out", "0", "--max-cost", "1"], "nothing was asked"),
        (["--key-env", "NO_SUCH_KEY"], "no environment variable"),
        (["--convention", "lava"], 'unknown convention "lava", did you mean "llava"?'),
        (["--max-tokens", "0"], "--max-tokens 0"),
    ],
)
def test_wrong_flags_ask_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    with judge(lambda body, n: "8 4") as server:
        assert main([*reviewing(tmp_path, server.url), *flags]) == 2
        assert server.seen == []
    assert told in capsys.readouterr().err


def test_http_to_another_machine_is_for_those_who_ask_for_it() -> None:
    endpoint = Endpoint("http://judge.example/v1/", "j")
    assert checked(endpoint, allow_http=True).url == "http://judge.example/v1/chat/completions"
    assert checked(Endpoint("https://judge.example/v1/chat/completions", "j")).url.count("chat") == 1
    for url in ("http://localhost:1/v1", "http://[::1]:1/v1", "http://127.8.8.8/v1"):
        assert checked(Endpoint(url, "j"))
    for url in ("http://127.0.0.1.example/v1", "http://localhost.example/v1", "http://10.0.0.1/v1"):
        with pytest.raises(ConfigError, match="--allow-http"):
            checked(Endpoint(url, "j"))
    assert "sk-1" not in repr(Endpoint("https://judge.example/v1", "j", "sk-1"))


def test_a_dry_run_tells_the_cost_and_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with judge(lambda body, n: "8 4") as server:
        args = reviewing(tmp_path, server.url, "--dry-run", "--price-in", "10", "--price-out", "100")
        assert main(args) == 0
        assert server.seen == []
    told = capsys.readouterr()
    assert "4 requests, 0 of them answered in the cache" in told.err
    assert "at most 4096 of answers, at most about 0.41 by the prices given" in told.err
    assert "[Context]\nIt is 0." in told.out


def test_reasoning_models_get_no_temperature(tmp_path: Path) -> None:
    with judge(lambda body, n: "8 4") as server:
        assert main(reviewing(tmp_path, server.url, "--reasoning", count=1)) == 0
    assert set(server.seen[0]) == {"model", "messages", "max_completion_tokens"}


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.names: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}


def test_the_page_of_reviews_shows_html_as_text(tmp_path: Path) -> None:
    evil = "</div><script>alert(1)</script><img src=x onerror=alert(2)>\u202e\x1b[31m\ud800"
    with judge(lambda body, n: f"8 4\n{evil}".encode("utf-8", "replace").decode()) as server:
        args = reviewing(tmp_path, server.url)
        rows = [answer(n, evil) for n in range(4)]
        write_lines(tmp_path / "ours.jsonl", [{**row, "model_id": evil} for row in rows])
        assert main(args) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.tags & {"script", "img", "iframe", "a", "link"}
    assert not {name for name in page.names if name.startswith("on") or name in ("src", "href")}
    assert "default-src 'none'" in text
    assert text.count("&lt;script&gt;alert(1)") == 12
    assert "\u202e" not in text
    assert "\x1b" not in text


# ---- MM-Vet -------------------------------------------------------------------------------------------------------


def judging(folder: Path, url: str, *more: str) -> list[str]:
    judge_kit.mm_vet(folder)
    return [
        "judge", "mm-vet", "--answers", str(folder / "a.jsonl"), "--data", str(folder), "--output",
        str(folder / "mm-vet-score.json"), "--base-url", url, "--judge-model", "j", "--workers", "1", *more,
    ]  # fmt: skip


def test_mm_vet_is_graded_and_totalled_by_capability(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lines(tmp_path / "a.jsonl", [answer(0, "x = -1"), answer("v1_1", "b"), answer(2, "c")])
    with judge(lambda body, n: {1: "0.5", 2: "0.4 |", 3: "1.0"}[n]) as server:
        assert main(judging(tmp_path, server.url, "--json")) == 0
    body = server.seen[0]
    assert (body["temperature"], body["max_tokens"], len(body["messages"])) == (0.0, 3, 1)
    text = body["messages"][0]["content"]
    assert text.endswith("| 1.0\n\nx? | -1 <AND> -5 | x = -1 | ")
    assert "\n--- | --- | --- | ---\nWhat is x in the equation? | -1 <AND> -5 | x = 3 | 0.0\n" in text
    metrics = {name: one["value"] for name, one in json.loads(capsys.readouterr().out)["metrics"].items()}
    assert metrics == {
        "total": pytest.approx(1.9 / 3),
        "total/capability=math": 0.75, "total/capability=ocr": 0.75, "total/capability=rec": 0.4,
        "total/capabilities=math+ocr": 0.75, "total/capabilities=rec": 0.4,
    }  # fmt: skip


def test_grades_that_are_none_are_asked_for_again_then_count_0_and_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lines(tmp_path / "a.jsonl", [answer(0, "x"), answer(1, "y")])
    with judge(lambda body, n: "good" if "| x | " in body["messages"][0]["content"][-99:] else "1.0") as server:
        args = judging(tmp_path, server.url)
        assert main(args) == 1
        assert [body["temperature"] for body in server.seen] == [0.0, 0.0, 0.0, 0.5, 1.0, 1.5]
        assert server.seen[2]["messages"][0]["content"].endswith(
            " | x | \nPredict the correctness of the answer (digit): "
        )
        told = capsys.readouterr().out
        assert 'v1_0: the judge: no grade in "good"' in told
        assert "v1_2: no answer" in told
        assert "**total** | 33.33" in told
        assert main(args) == 1
        assert len(server.seen) == 6
    assert main(["report", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    ("text", "grade"),
    [("0.5", 0.5), ("1", 1.0), ("0.3 |", 0.3), ("\n0.2", 0.2), (" 0.5", None), ("1.1", None), ("-0.1", None),
     ("nan", None), ("", None), ("0.5|", None), ("1e-1", 0.1)],
)  # fmt: skip
def test_grades_are_read_by_the_rule_of_the_evaluator(text: str, grade: float | None) -> None:
    assert mm_vet.grade_in(text) == grade


def test_other_benchmarks_are_sent_to_their_verbs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = judging(tmp_path, "http://127.0.0.1:9/v1")
    for name, told in (("llava-bench", "eval review asks"), ("pope", "eval score scores it"), ("mmvett", "mm-vet")):
        assert main(["judge", name, *args[2:]]) == 2
        assert told in capsys.readouterr().err
