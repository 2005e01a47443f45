# SPDX-License-Identifier: Apache-2.0
"""The page without a browser and without gradio: conversations, pictures, votes, what is asked, and who may ask."""

import asyncio
import base64
import contextlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
from PIL import Image

from paddlemix.examples.mv_llava import app
from paddlemix.serve import gradio_web_server
from paddlemix.serve.access import Access
from paddlemix.serve.chat_request import read_chat
from paddlemix.serve.limits import Limits
from paddlemix.serve.page import running, words
from paddlemix.serve.page.asking import AskError, Server, until
from paddlemix.serve.page.examples import SAMPLES, read_examples
from paddlemix.serve.page.guard import PageGuard
from paddlemix.serve.page.pictures import BACKGROUND, LARGEST, Picture, in_a_row, shaped, taken
from paddlemix.serve.page.talk import ARRANGEMENTS, Settings, Talk
from paddlemix.serve.page.votes import DOWN, UP, Votes
from paddlemix.serve.together import run_together
from paddlemix.utils.commands import ROOT
from paddlemix.utils.errors import ConfigError, DataError
from tests.serve.page_kit import BROKEN, BUSY, MODELS, StubWorker, stub_worker

KEY = "a-key-of-this-test-0001"
SETTINGS = Settings(MODELS[0], temperature=0.0, top_p=0.9, tokens=32)


@pytest.fixture
def stub() -> Iterator[StubWorker]:
    with stub_worker() as found:
        yield found


def picture_file(folder: Path, size: tuple[int, int] = (40, 30), name: str = "a.png", orientation: int = 1) -> Path:
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    exif = Image.Exif()
    exif[274] = orientation
    image.save(folder / name, exif=exif)
    return folder / name


def pictures(folder: Path, count: int) -> tuple[Picture, ...]:
    return tuple(taken(picture_file(folder, name=f"{number}.png"), "Default", folder) for number in range(count))


async def gathered(pieces: Any) -> str:
    return "".join([piece async for piece in pieces])


async def gathered_list(pieces: Any) -> list[Any]:
    return [piece async for piece in pieces]


def answer(server: Server, text: str) -> str:
    talk = Talk()
    talk.asked(text, (), SETTINGS, Path("unused"))
    return asyncio.run(gathered(server.answer(talk.body(SETTINGS))))


# --- conversations


@pytest.mark.parametrize("waits", [True, False])
def test_a_conversation_that_is_cleared_while_its_question_is_on_its_way_stays_cleared(
    stub: StubWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """Cleared before its answer has its turn, or while words of it come; the view's functions, without gradio."""
    for name in ("gradio", "paddlemix.serve.page.view"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    monkeypatch.delitem(sys.modules, "paddlemix.serve.page.view")
    view = importlib.import_module("paddlemix.serve.page.view")
    controls = (MODELS[0], 0.2, 0.7, 16, "separate", 2)
    page = view.View(view.Page(Server(stub.url), tmp_path, MODELS))
    request = SimpleNamespace(session_hash="one", headers={})

    async def cleared() -> tuple[Any, list[Any], Any]:
        talk, *_ = await page._sent(request, {"text": "slow"}, None, "Default", *controls)
        drawn = page._answered(request, talk, *controls)
        if not waits:
            await anext(drawn)
        done, left = await asyncio.gather(page._cleared(request, talk), gathered_list(drawn))
        following, *_ = await page._sent(request, {"text": "and?"}, talk, "Default", *controls)
        return done, left, following

    done, left, following = asyncio.run(cleared())
    assert done[:2] == [None, []]
    windows = [window for window, *_ in left if isinstance(window, list)]
    assert windows[-1:] in ([], [[]])
    assert [turn.text for turn in following.turns] == ["and?"]
    assert len(stub.asked) == (0 if waits else 1)


@pytest.mark.parametrize(
    ("arrangement", "count", "part"),
    [
        ("separate", 2, {"type": "image_url"}),
        ("views", 4, {"type": "image_views", "grid": None, "repeat": None}),
        ("views", 1, {"type": "image_views", "grid": None, "repeat": 4}),
        ("sheet", 1, {"type": "image_views", "grid": 3, "repeat": None}),
    ],
)
def test_a_request_is_one_that_the_worker_reads(
    arrangement: str, count: int, part: dict[str, Any], tmp_path: Path
) -> None:
    settings = Settings(MODELS[0], arrangement=arrangement, grid=3)
    talk = Talk()
    talk.asked("what is it?", pictures(tmp_path, count), settings, tmp_path)
    body = talk.body(settings)
    first = body["messages"][0]["content"][0]
    assert first["type"] == part["type"]
    if "grid" in part:
        assert (first["image_views"].get("grid"), first["image_views"].get("repeat")) == (part["grid"], part["repeat"])
    read = read_chat(json.loads(json.dumps(body)), Limits())
    assert read.stream
    assert (read.decoding.temperature, read.decoding.top_p, read.decoding.max_new_tokens) == (0.2, 0.7, 512)
    assert read.messages[0].text == "<image>\n" * (count if arrangement == "separate" else 1) + "what is it?"
    assert [len(place.sources) for place in read.places] == ([1] * count if arrangement == "separate" else [count])
    sent = base64.b64decode(read.places[0].sources[0].partition(",")[2])
    assert sent == (tmp_path / "0.png").read_bytes(), "an unchanged file is sent as it came"


def test_a_question_that_failed_makes_room_and_leaves_its_pictures(tmp_path: Path) -> None:
    talk, one = Talk(), pictures(tmp_path, 1)
    talk.asked("first", one, SETTINGS, tmp_path)
    talk.turns[-1].error = "busy"
    assert [part["content"] for part in talk.shown()][1:] == ["⚠️ busy"]
    talk.asked("second", (), SETTINGS, tmp_path)
    assert [(turn.text, turn.pictures) for turn in talk.turns] == [("second", one)]
    talk.turns[-1].answer = "an answer"
    talk.asked("third", (), SETTINGS, tmp_path)
    roles = [(message["role"], message["content"][-1]) for message in talk.body(SETTINGS)["messages"]]
    assert roles == [("user", {"type": "text", "text": "second"}), ("assistant", "r"), ("user", "d")]


def test_asking_again_forgets_the_answer_and_takes_the_controls_of_now() -> None:
    talk = Talk()
    talk.asked("what?", (), SETTINGS, Path("unused"))
    last = talk.turns[-1]
    last.answer, last.error, last.stopped = "cut", "*off*", True
    assert talk.shown()[-1]["content"] == "cut\n\n⚠️ \\*off\\*"
    talk.again(Settings(MODELS[1], arrangement="views"))
    assert (last.answer, last.error, last.stopped, last.model, last.arrangement) == ("", "", False, MODELS[1], "views")
    assert talk.shown("…")[-1] == {"role": "assistant", "content": "…"}


# --- pictures


@pytest.mark.parametrize(
    ("mode", "size"), [("Default", (40, 30)), ("Pad", (40, 40)), ("Crop", (30, 30)), ("Resize", (40, 40))]
)
def test_a_picture_is_brought_to_the_shape_that_is_asked_for(mode: str, size: tuple[int, int]) -> None:
    image = Image.linear_gradient("L").resize((40, 30)).convert("RGB")
    found = shaped(image, mode)
    assert found.size == size
    if mode == "Pad":
        assert found.getpixel((0, 0)) == found.getpixel((39, 39)) == BACKGROUND
        assert found.crop((0, 5, 40, 35)).tobytes() == image.tobytes()
    if mode == "Crop":
        assert found.tobytes() == image.crop((5, 0, 35, 30)).tobytes()
    square = image.crop((0, 0, 30, 30))
    assert shaped(square, mode) is square


def test_a_picture_is_turned_as_a_browser_shows_it(tmp_path: Path) -> None:
    upright = taken(picture_file(tmp_path), "Default", tmp_path)
    turned = taken(picture_file(tmp_path, name="b.jpg", orientation=6), "Default", tmp_path)
    assert upright.sent == tmp_path / "a.png"
    with Image.open(turned.sent) as found:
        assert found.size == (30, 40)
    with Image.open(in_a_row([upright, turned], tmp_path) or "") as row:
        assert row.size == (40 + 8 + 30, 40)


def test_what_is_written_anew_is_no_larger_than_a_model_looks_at(tmp_path: Path) -> None:
    found = taken(picture_file(tmp_path, (3000, 20)), "Pad", tmp_path)
    with Image.open(found.sent) as image:
        assert image.size == (LARGEST, LARGEST)


def test_a_file_that_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"^x\.png: not an image"):
        taken(tmp_path / "x.png", "Default", tmp_path)


def test_old_files_go_and_the_examples_stay(tmp_path: Path) -> None:
    for name in ("example", "old", "new"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0) if name != "new" else None)
    running.sweep(tmp_path, {tmp_path / "example"}, seconds=3600)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example", "new"]


# --- asking


def test_models_and_answers_come_from_the_server(stub: StubWorker) -> None:
    server = Server(stub.url)
    assert asyncio.run(server.models()) == MODELS
    assert answer(server, "what?") == "seen: nothing turns 1 by llava-drawn"


@pytest.mark.parametrize(("text", "told"), [("busy", BUSY), ("broken", BROKEN), ("silent", "broke off")])
def test_an_error_is_told_in_the_words_of_the_worker(stub: StubWorker, text: str, told: str) -> None:
    with pytest.raises(AskError) as caught:
        answer(Server(stub.url), text)
    assert told in str(caught.value)


def test_a_server_that_is_not_there_or_wants_a_key_is_told() -> None:
    with pytest.raises(AskError, match="http://127.0.0.1:9 cannot be reached"):
        asyncio.run(Server("http://127.0.0.1:9").models())
    with stub_worker(KEY) as stub:
        with pytest.raises(AskError, match="an API key is needed"):
            asyncio.run(Server(stub.url).models())
        assert asyncio.run(Server(stub.url, KEY).models()) == MODELS
        assert "seen" in answer(Server(stub.url, KEY), "what?")


def test_stopping_ends_the_answer_at_the_worker(stub: StubWorker) -> None:
    talk = Talk()
    talk.asked("slow", (), SETTINGS, Path("unused"))

    async def stopped() -> str:
        stop, found = asyncio.Event(), ""
        pieces = Server(stub.url).answer(talk.body(SETTINGS))
        async for piece in until(stop, pieces):
            found += piece
            if "word3" in found:
                stop.set()
        for _ in range(200):  # here, where no end of the loop closes what was left open
            if stub.left:
                break
            await asyncio.sleep(0.02)
        return found

    found = asyncio.run(stopped())
    assert "word3" in found
    assert "word9" not in found
    assert stub.left == 1


def test_stopping_does_not_wait_for_the_next_piece() -> None:
    closed = []

    async def silent() -> Any:
        try:
            await asyncio.sleep(60)
            yield "late"
        finally:
            closed.append(True)

    async def stopped() -> str:
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, stop.set)
        return await asyncio.wait_for(gathered(until(stop, silent())), 10)

    assert asyncio.run(stopped()) == ""
    assert closed == [True]


# --- votes, words, examples


def test_a_vote_tells_of_the_answer_and_of_texts_only_when_asked(tmp_path: Path) -> None:
    talk = Talk()
    talk.asked("a secret question", (), SETTINGS, tmp_path)
    talk.turns[-1].answer = "星星"
    for texts, name in ((False, "plain"), (True, "full")):
        log = Votes(tmp_path / name, texts=texts)
        log.add(UP, talk, SETTINGS)
        log.add(DOWN, talk, SETTINGS)
        lines = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert [(line["type"], line["model"], line["turn"]) for line in lines] == [
            ("upvote", MODELS[0], 1), ("downvote", MODELS[0], 1),
        ]  # fmt: skip
        assert ("secret" in (tmp_path / name).read_text()) is texts
    assert lines[0]["state"]["messages"][1] == {"role": "assistant", "content": "星星"}
    assert (tmp_path / "full").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ConfigError, match="--vote-log"):
        Votes(tmp_path / "none" / "log")


def test_every_text_is_there_in_both_languages() -> None:
    for name in words.WORDS:
        english, chinese = words.text(name, "en"), words.text(name, "zh")
        assert english
        assert any("\u4e00" <= letter <= "\u9fff" for letter in chinese) or english == chinese == "Top-p"
        assert sorted(part for part in ("{most}",) if part in english) == [p for p in ("{most}",) if p in chinese]
    assert set(ARRANGEMENTS) < set(words.WORDS)


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,en;q=0.9,zh;q=0.1", "en"),
        ("de-DE,de", "en"),
        ("", "en"),
        ("ZH", "zh"),
    ],
)
def test_the_language_is_that_of_the_browser(accept: str, language: str) -> None:
    assert words.preferred(accept) == language


def test_examples_are_the_drawn_pictures_or_those_of_a_file(tmp_path: Path) -> None:
    assert len(read_examples(None)) == len(SAMPLES.read_text().splitlines())
    drawn = read_examples(app.drawn_examples(tmp_path))
    assert [(len(example.files), example.arrangement) for example in drawn] == [(4, "views"), (1, "sheet")] * 2
    for line in ('{"question": "x", "image": "none.png"}', '{"question": 5}', "{", '["x"]',
                 '{"question": "x", "image": "0.png", "arrangement": "pile"}'):  # fmt: skip
        (tmp_path / "bad.jsonl").write_text(line)
        with pytest.raises(ConfigError, match=r"bad\.jsonl:1"):
            read_examples(tmp_path / "bad.jsonl")


# --- the guard


class Asked:
    """An application behind the guard; ``bodies`` are those that it has been given."""

    def __init__(self, folder: Path, keys: list[str]) -> None:
        self.bodies: list[bytes] = []
        self.guard = PageGuard(self._app, Access.of(keys), folder)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"inside"})

    def ask(self, path: str, method: str = "GET", body: bytes = b"", **headers: str) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer."""
        sent: list[Any] = []
        given = {"host": "127.0.0.1:7860", "content-length": str(len(body)), **headers}
        scope = {
            "type": "http", "method": method, "path": path,
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
        }  # fmt: skip
        pieces = [body[place : place + 65536] for place in range(0, len(body), 65536)] or [b""]
        waiting = [{"type": "http.request", "body": piece, "more_body": piece is not pieces[-1]} for piece in pieces]

        async def receive() -> Any:
            return waiting.pop(0) if waiting else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self.guard(scope, receive, send))
        return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def basic(key: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{key}".encode()).decode()


def test_a_browser_shows_the_key_as_a_password(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [KEY])
    for good in (basic(KEY), f"Bearer {KEY}"):
        assert asked.ask("/", authorization=good)[0] == 200
    for bad in ({}, {"authorization": basic("wrong")}, {"authorization": "Basic !"}, {"authorization": f"Basic {KEY}"}):
        status, headers = asked.ask("/", **bad)
        assert (status, headers["www-authenticate"]) == (401, 'Basic realm="paddlemix"')


def test_without_a_key_only_pages_of_this_machine_are_served(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [])
    status, headers = asked.ask("/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert asked.ask("/", host="elsewhere.example")[0] == 403
    assert asked.ask("/gradio_api/queue/join", "POST", b"{}", origin="http://elsewhere.example")[0] == 403


def test_only_the_routes_of_the_page_are_there(tmp_path: Path) -> None:
    asked = Asked(tmp_path, [])
    for path in ("/", "/theme.css", "/assets/a.js", "/gradio_api/queue/data", "/gradio_api/heartbeat/a1"):
        assert asked.ask(path)[0] == 200, path
    api = ("info", "proxy=http://127.0.0.1/", "runs", "vibe-code/", "file/etc/passwd", "openapi.json", "deep_link",
           "component_server", "call/x", "stream/a/b", "run/other")  # fmt: skip
    for path in ("/config", "/monitoring", "/login", *(f"/gradio_api/{name}" for name in api)):
        assert asked.ask(path)[0] == 404, path
        assert asked.ask(path, "POST", b"{}")[0] == 404, path
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert asked.ask("/", method)[0] == 404
    assert asked.ask("/", "POST", b"{}")[0] == 404


def test_files_are_read_below_one_folder_only(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "own-not"
    for folder in (own, other):
        folder.mkdir()
        (folder / "a.png").write_text("x")
    (own / "link.png").symlink_to(other / "a.png")
    asked = Asked(own, [])
    assert asked.ask(f"/gradio_api/file={own}/a.png")[0] == 200
    outside = (f"{own}/../own-not/a.png", f"{own}/%2e%2e/own-not/a.png", f"{other}/a.png", f"{own}/link.png")
    for name in (
        "/etc/passwd",
        "http://127.0.0.1:9/a.png",
        "file:///etc/passwd",
        "a.png",
        f"{own}/a\0.png",
        "",
        *outside,
    ):
        assert asked.ask(f"/gradio_api/file={name}")[0] == 404, name
        body = json.dumps({"data": [{"files": [{"path": name}]}]}).encode()
        assert asked.ask("/gradio_api/queue/join", "POST", body)[0] == 404, name
    body = json.dumps({"data": [{"files": [{"path": f"{own}/a.png"}]}]}).encode()
    assert asked.ask("/gradio_api/queue/join", "POST", body)[0] == 200
    assert asked.bodies[-1] == body, "the application gets the body that was checked"


def test_bodies_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(tmp_path, [])
    many = json.dumps({"data": ["x" * 1024] * 1100}).encode()
    assert asked.ask("/gradio_api/queue/join", "POST", many)[0] == 413
    assert asked.ask("/gradio_api/queue/join", "POST", many, **{"content-length": "10"})[0] == 413
    assert asked.ask("/gradio_api/queue/join", "POST", b"[" * 100_000)[0] == 400
    assert asked.ask("/gradio_api/queue/join", "POST", b"no JSON")[0] == 400
    assert asked.ask("/gradio_api/upload", "POST", many)[0] == 200
    assert asked.ask("/gradio_api/upload", "POST", b"", **{"content-length": str(1 << 40)})[0] == 413
    (tmp_path / "kept").write_bytes(b"x" * 2000)
    monkeypatch.setattr("paddlemix.serve.page.guard.HELD_BYTES", 1000)
    status, headers = asked.ask("/gradio_api/upload", "POST", many)
    assert (status, headers["retry-after"]) == (503, "600")


# --- the commands


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--moderate"], "--moderate"),
        (["--host", "0.0.0.0"], "--api-key-file"),
        (["--share"], "--share lets everybody ask"),
        (["--port", "70000"], "--port 70000"),
        (["--vote-log-texts"], "--vote-log FILE"),
        (["--concurrency-count", "0"], "--concurrency-count 0"),
        (["--controller-url", "file:///etc/passwd"], "--controller-url"),
        (["--controller-url", "https://127.0.0.1:1"], "http://HOST:PORT"),
        (["--examples", "not-there.jsonl"], "not-there.jsonl"),
        (["--vote_log", "not-there/votes"], "--vote-log"),
        (["--controller-key-file", "not-there"], "not-there"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_drawn(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gradio_web_server.main(flags) == 2
    assert told in capsys.readouterr().err
    assert "gradio" not in sys.modules


@pytest.mark.parametrize(
    "flags", [["--moderate"], ["--host", "0.0.0.0"], ["--load-4bit", "--load-8bit"], ["--web-python", "/no/python"]]
)
def test_the_one_command_checks_its_flags_before_it_starts_a_worker(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["--model-path", "no-such-model", *flags]) == 2
    assert flags[0] in capsys.readouterr().err


def test_an_interpreter_without_gradio_is_told_with_the_line_that_makes_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert app.main(["--model-path", "no-such-model", "--web-python", str(python)]) == 2
    said = capsys.readouterr().err
    assert "has no gradio" in said
    assert "[web]" in said
    assert said.count("\n") == 1


WORKER = "import sys, time; print('listening at http://127.0.0.1:5', file=sys.stderr, flush=True); time.sleep({})"


@pytest.mark.parametrize(
    ("worker", "page", "code"),
    [
        (WORKER.format(60), "import sys; sys.exit(7 if sys.argv[-1] == 'http://127.0.0.1:5' else 8)", 7),
        ("import sys; sys.exit(2)", "import time; time.sleep(60)", 2),
        (WORKER.format(0.1), "import time; time.sleep(60)", 1),
    ],
)
def test_worker_and_page_end_together(worker: str, page: str, code: int) -> None:
    assert run_together([sys.executable, "-c", worker], [sys.executable, "-c", page]) == code


def test_worker_and_page_end_when_the_command_is_killed(tmp_path: Path) -> None:
    mark = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch();"
    words = [[sys.executable, "-c", mark + WORKER.format(60)]] * 2
    code = f"from paddlemix.serve.together import run_together; run_together(*{words!r})"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while len(found := list(tmp_path.iterdir())) < 2:
            assert time.monotonic() < until
            time.sleep(0.02)
        process.kill()
        process.wait(20)
        while any(alive(int(file.name)) for file in found):
            assert time.monotonic() < until
            time.sleep(0.02)
    finally:
        process.kill()


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return ") Z " not in stat.read_text()
    return False


def test_a_missing_gradio_is_a_line_with_an_environment_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "paddlemix.serve.page.view", raising=False)
    monkeypatch.setattr(running.env, "put", lambda *_: None)
    assert gradio_web_server.main([]) == 2
    said = capsys.readouterr().err
    assert 'the package "gradio" is not installed' in said
    assert "-m venv .venv-web && .venv-web/bin/python -m pip install" in said
    assert "[web]" in said


def test_the_alias_of_the_chat_takes_the_flags_of_the_original() -> None:
    words = [
        "-m",
        "paddlemix.serve.cli",
        "--model-path",
        "x",
        "--image-file",
        "y",
        "--load-8bit",
        "--load-4bit",
        "--device",
        "cpu",
    ]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert "--load-8bit" in done.stderr


def test_gradio_is_told_to_send_nothing_and_to_keep_files_in_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "GRADIO_RUN_HISTORY", "GRADIO_SSR_MODE",
                 "GRADIO_MCP_SERVER", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):  # fmt: skip
        monkeypatch.setenv(name, "before")
    with running.upload_folder() as folder:
        assert os.environ["GRADIO_TEMP_DIR"] == str(folder)
        assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not folder.exists()
