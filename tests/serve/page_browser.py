# SPDX-License-Identifier: Apache-2.0
"""The page in a browser: python -m tests.serve.page_browser CHROMIUM WIDTHxHEIGHT LOCALE [FOLDER]

Runs with an interpreter that has gradio and playwright, and none of the project's other packages. It ends with 0 when
everything is as it should be; with FOLDER it leaves pictures of the page there, to be looked at.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from paddlemix.serve.page import words
from tests.serve.page_kit import BROKEN, BUSY, MARKDOWN, MODELS, StubWorker, stub_worker

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "examples/shapes/pictures"
KEY = "a-key-of-this-test-0001"
LOOPBACK_ONLY = """
import socket, sys
def local(host):
    return host in (None, "", "localhost", "::1", "0.0.0.0") or str(host).startswith("127.")
lookup, connect = socket.getaddrinfo, socket.socket.connect
def looked_up(host, *rest, **more):
    if not local(host):
        open(sys.argv[1], "a").write(f"lookup {host}\\n")
        raise OSError("not in this test")
    return lookup(host, *rest, **more)
def connected(self, address):
    if isinstance(address, tuple) and not local(address[0]):
        open(sys.argv[1], "a").write(f"connect {address}\\n")
        raise OSError("not in this test")
    return connect(self, address)
socket.getaddrinfo, socket.socket.connect = looked_up, connected
from paddlemix.serve.gradio_web_server import main
sys.exit(main(sys.argv[2:]))
"""
"""Runs the command, and writes down each address elsewhere that anything in the process asks for."""


@contextlib.contextmanager
def served(folder: Path, *flags: str) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """The command as a process that may speak with this machine only; its address."""
    log, strangers = folder / "log", folder / "strangers"
    words = [sys.executable, "-c", LOOPBACK_ONLY, str(strangers), "--port", "0", *flags]
    with open(log, "wb") as stream:
        process = subprocess.Popen(
            words, stdout=stream, stderr=stream, cwd=ROOT, env={**os.environ, "TMPDIR": str(folder)}
        )
    try:
        while not (found := re.search(r"listening at (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        yield found[1], process
        process.terminate()
        assert process.wait(20) == 0, log.read_text()
        assert "Traceback" not in log.read_text(), log.read_text()
        assert not strangers.exists(), strangers.read_text()
        assert not list(folder.glob("paddlemix-page-*")), "the folder of uploads has gone with the process"
    finally:
        process.kill()
        process.wait(20)


class Browser:
    """One page of a browser, by what a person sees and does."""

    def __init__(self, page: Page, url: str, stub: StubWorker, language: str, shots: Path | None) -> None:
        self.page, self.stub, self.shots = page, stub, shots
        self.word = words.table(language)
        self.elsewhere: list[str] = []
        page.on("requestfinished", lambda found: self._seen(found.url, url))
        page.goto(url)
        page.wait_for_selector("#box textarea", timeout=60_000)

    def _seen(self, address: str, own: str) -> None:
        if not address.startswith((own, "data:", "blob:")):
            self.elsewhere.append(address)

    def look(self, name: str) -> None:
        if self.shots is not None:
            self.page.screenshot(path=self.shots / f"{name}.png", full_page=True)

    def add(self, *names: str) -> None:
        self.page.set_input_files("#box input[type=file]", [str(PICTURES / name) for name in names])
        self.page.wait_for_function("n => document.querySelectorAll('#box img').length >= n", arg=len(names))

    def ask(self, text: str, *names: str) -> None:
        if names:
            self.add(*names)
        self.page.fill("#box textarea", text)
        self.page.click("#box button.submit-button")

    def says(self, text: str) -> None:
        self.page.wait_for_function(
            "t => document.querySelector('#chat').innerText.includes(t)", arg=text, timeout=20_000
        )

    def told(self, text: str) -> None:
        self.page.wait_for_function("t => document.body.innerText.includes(t)", arg=text, timeout=20_000)

    def rests(self) -> None:
        self.page.wait_for_selector("#box button.submit-button", timeout=20_000)

    def enabled(self, name: str) -> bool:
        return self.page.is_enabled(f"#{name}")


def labels(browser: Browser) -> None:
    for name in ("model", "arrangement", "views", "mode", "Pad", "parameters", "again", "clear", "empty", "examples"):
        browser.told(browser.word[name])
    assert browser.page.input_value("#model input") == MODELS[0]
    browser.look("empty")
    wide = browser.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    assert wide <= 1, f"{wide} pixels stand out at the side"
    assert [browser.enabled(name) for name in ("up", "down", "flag", "again")] == [False] * 4


def pictures(browser: Browser) -> None:
    browser.ask("what?", "00000.png", "00001.png")
    browser.says("seen: picture, picture turns 1 by llava-drawn")
    browser.rests()
    browser.ask("and?")
    browser.says("seen: nothing turns 3")
    browser.rests()
    assert browser.stub.asked[-1]["messages"][1]["content"].startswith("seen: picture, picture")


def errors(browser: Browser) -> None:
    browser.ask("busy")
    browser.says(BUSY)
    browser.rests()
    browser.look("busy")
    assert (browser.enabled("again"), browser.enabled("up")) == (True, False)
    browser.ask("broken")  # takes the place of the question that failed
    browser.says(BROKEN)
    browser.says("word3")
    browser.rests()
    browser.ask("silent")
    browser.says("broke off")
    browser.rests()
    browser.ask("")
    browser.told(browser.word["type_question"])


def stopping(browser: Browser) -> None:
    before = browser.stub.left
    browser.ask("slow")
    browser.says("word5")
    browser.look("streaming")
    browser.page.click("#box button.stop-button")
    browser.rests()
    text = browser.page.inner_text("#chat")
    browser.page.wait_for_timeout(500)
    assert browser.page.inner_text("#chat") == text
    assert "word399" not in text
    for _ in range(50):
        if browser.stub.left > before:
            break
        time.sleep(0.1)
    assert browser.stub.left == before + 1, "the worker was not told"
    browser.page.click("#again")
    browser.says("word1")
    browser.page.click("#clear")
    browser.page.wait_for_function("() => !document.querySelector('#chat').innerText.includes('word')")
    browser.page.wait_for_timeout(500)
    browser.told(browser.word["empty"])
    assert "word" not in browser.page.inner_text("#chat")


def markdown(browser: Browser) -> None:
    browser.ask("markdown")
    browser.says("A drawing")
    browser.rests()
    browser.look("markdown")
    assert browser.page.locator("#chat table").count() == 1
    assert "203.0.113.7" in MARKDOWN
    browser.page.click("#clear")
    browser.told(browser.word["empty"])


def views_and_votes(browser: Browser, votes: Path) -> None:
    browser.page.get_by_text(browser.word["views"], exact=True).click()
    browser.ask("turned?", "00000.png", "00001.png", "00002.png", "00003.png")
    browser.says("seen: views 4 grid 1 turns 1")
    browser.rests()
    browser.look("views")
    browser.page.click("#up")
    browser.told(browser.word["thanks"])
    line = json.loads(votes.read_text().splitlines()[-1])
    assert (line["type"], line["model"], line["pictures"]) == ("upvote", MODELS[0], 4)
    assert "turned" not in votes.read_text()
    browser.page.wait_for_function("() => document.querySelector('#up').disabled")
    browser.page.get_by_text(browser.word["sheet"], exact=True).click()
    browser.told(browser.word["grid"])
    browser.ask("sheet?", "00004.png")
    browser.says("seen: views 1 grid 2 turns 3")
    browser.rests()


def examples(browser: Browser) -> None:
    browser.page.click("#examples button >> nth=0")
    browser.page.wait_for_function("() => document.querySelector('#box textarea').value.length > 5")
    browser.page.wait_for_selector("#box img")
    browser.page.wait_for_function("() => document.querySelector('#arrangement input').checked")
    browser.page.click("#box button.submit-button")
    browser.says("seen: picture turns 5")
    browser.rests()


def strangers(browser: Browser, url: str) -> None:
    """What known advisories of gradio were about, on the running page."""
    ask = browser.page.context.request
    api = f"{url}/gradio_api"
    for path in (
        "file=/etc/passwd",
        "file=http://203.0.113.7/a.png",
        "proxy=http://203.0.113.7/",
        "runs",
        "vibe-code/",
    ):
        assert ask.get(f"{api}/{path}").status == 404, path
    for path in ("/etc/passwd", "http://203.0.113.7/a.png"):
        file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        data = {"data": [{"text": "x", "files": [file]}], "fn_index": 0, "session_hash": "abc"}
        for route in ("queue/join", "run/predict"):
            assert ask.post(f"{api}/{route}", data=data).status == 404, path
    large = {"files": {"name": "a.png", "mimeType": "image/png", "buffer": b"x" * (21 << 20)}}
    assert ask.post(f"{api}/upload", multipart=large).status == 413


def leaving(browser: Browser) -> None:
    before = browser.stub.left
    browser.ask("slow")
    browser.says("word2")
    browser.page.close()
    for _ in range(100):
        if browser.stub.left > before:
            return
        time.sleep(0.1)
    raise AssertionError("an answer goes on for a browser that has gone")


def main(chromium: str, size: str, locale: str, shots: Path | None) -> None:
    width, height = map(int, size.split("x"))
    language = words.preferred(locale)
    with tempfile.TemporaryDirectory() as name, stub_worker() as stub, sync_playwright() as playwright:
        folder = Path(name)
        votes, keys = folder / "votes.jsonl", folder / "keys"
        keys.write_text(f"{KEY}\n")
        flags = ["--controller-url", stub.url, "--vote-log", str(votes), "--api-key-file", str(keys)]
        with served(folder, *flags) as (url, _):
            running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            assert running.new_context().request.get(url).status == 401, "without a key there is no page"
            context = running.new_context(
                viewport={"width": width, "height": height}, locale=locale,
                http_credentials={"username": "anybody", "password": KEY},
            )  # fmt: skip
            browser = Browser(context.new_page(), url, stub, language, shots)
            labels(browser)
            pictures(browser)
            errors(browser)
            stopping(browser)
            markdown(browser)
            views_and_votes(browser, votes)
            examples(browser)
            assert browser.elsewhere == []
            strangers(browser, url)
            leaving(browser)
            running.close()


if __name__ == "__main__":
    main(*sys.argv[1:4], Path(sys.argv[4]) if len(sys.argv) > 4 else None)
