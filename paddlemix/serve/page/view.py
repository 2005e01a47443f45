# SPDX-License-Identifier: Apache-2.0
"""The page as gradio draws it: what stands where, and which function of ``talk`` and ``asking`` a button calls."""

import asyncio
import contextlib
import html
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from paddlemix.serve.page import words
from paddlemix.serve.page.asking import AskError, Server, until
from paddlemix.serve.page.examples import Example
from paddlemix.serve.page.pictures import MODES, Picture, taken
from paddlemix.serve.page.talk import ARRANGEMENTS, LONGEST, SHEET, Settings, Talk
from paddlemix.serve.page.votes import DOWN, FLAG, UP, Votes
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.logging import get_logger

WAIT = "…"
_BETWEEN = 0.06
"""Seconds between two states of an answer that a browser is sent."""
_HALT_SECONDS = 5.0
_AT_ONCE = 16
"""Pictures of one question; a worker takes as many unless it is told otherwise."""
_FILES = [".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"]
CSS = """
#page {max-width: 1280px; margin: 0 auto;}
#title p {font-size: 1.35rem; font-weight: 600;}
#talk, #side {min-width: 0 !important;}
#chat .message {overflow-wrap: anywhere;}
#chat .message img {max-height: 11rem; width: auto; border-radius: 6px;}
#votes button {min-width: 4.5rem;}
#chat [data-testid="status-tracker"] {display: none;}
#chat a.download-link, #chat a.download-link ~ button {display: none;}
.toast-title-row {visibility: hidden;}
footer {display: none !important;}
@media (max-width: 800px) {
  #columns {flex-direction: column; flex-wrap: nowrap;}
  #talk {order: 1; width: 100%;}
  #side {order: 2; width: 100%;}
  #chat {height: 58vh !important; min-height: 20rem;}
  #votes {flex-wrap: wrap;}
  #votes button {flex: 1 1 28%; padding: 8px 4px;}
}
"""
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "PingFang SC", "Noto Sans CJK SC", "Microsoft YaHei",
         "sans-serif"]  # fmt: skip
"""Those of the system: gradio's own would come from Google."""


@dataclass(frozen=True)
class Page:
    """What a page is made of. ``models`` are fixed ones, None: asked for whenever a page is opened.

    ``folder`` takes what browsers send; ``language`` None is that of the browser. ``at_once``: answers on their way.
    """

    server: Server
    folder: Path
    models: Sequence[str] | None = None
    votes: Votes | None = None
    examples: Sequence[Example] = ()
    language: str | None = None
    at_once: int = 16


def theme() -> gr.themes.Base:
    """Colours and fonts."""
    return gr.themes.Default(primary_hue="blue", font=FONTS, font_mono=["ui-monospace", "Consolas", "monospace"])


def translations() -> gr.I18n:
    """All labels by the languages of browsers."""
    chinese = words.table("zh")
    return gr.I18n(en=words.table("en"), zh=chinese, **{"zh-CN": chinese, "zh-TW": chinese})


class _Run:
    """An answer on its way, of one browser. ``cleared``: what is left of it is not drawn."""

    def __init__(self) -> None:
        self.stop, self.ended = asyncio.Event(), asyncio.Event()
        self.cleared = False


class View:
    """The components and their functions."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self._runs: dict[str, _Run] = {}
        labels = translations()
        self.label: Callable[[str], Any] = (
            labels if page.language is None else lambda name: words.text(name, page.language or "en")
        )

    def built(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(
            title=words.text("title", self.page.language or "en"), analytics_enabled=False
        ) as blocks, gr.Column(elem_id="page"):  # fmt: skip
            gr.Markdown(value=self.label("title"), elem_id="title")
            with gr.Row(elem_id="columns", equal_height=False):
                with gr.Column(scale=3, min_width=260, elem_id="side"):
                    self._side()
                with gr.Column(scale=7, min_width=300, elem_id="talk"):
                    self._talk()
            self._examples()
            gr.Markdown(value=self.label("note"))
            if self.page.votes is not None and self.page.votes.texts:
                gr.Markdown(value=self.label("note_texts"))
            self._wire(blocks)
        blocks.queue(default_concurrency_limit=self.page.at_once, api_open=False, max_size=256)
        return blocks

    def _side(self) -> None:
        label, models = self.label, list(self.page.models or ())
        self.model = gr.Dropdown(models, value=models[0] if models else None, label=label("model"), interactive=True,
                                 elem_id="model")  # fmt: skip
        self.reload = gr.Button(label("reload"), size="sm", visible=self.page.models is None, elem_id="reload")
        with gr.Accordion(label("pictures"), open=True):
            self.arrangement = gr.Radio([(label(name), name) for name in ARRANGEMENTS], value=ARRANGEMENTS[0],
                                        label=label("arrangement"), elem_id="arrangement")  # fmt: skip
            self.grid = gr.Slider(2, 4, value=2, step=1, label=label("grid"), visible=False, elem_id="grid")
            self.mode = gr.Radio([(label(name), name) for name in MODES], value=MODES[0], label=label("mode"),
                                 elem_id="mode")  # fmt: skip
        with gr.Accordion(label("parameters"), open=False, elem_id="parameters"):
            self.temperature = gr.Slider(0, 1, value=0.2, step=0.1, label=label("temperature"))
            self.top_p = gr.Slider(0.05, 1, value=0.7, step=0.05, label=label("top_p"))
            self.tokens = gr.Slider(16, LONGEST, value=512, step=16, label=label("tokens"), elem_id="tokens")

    def _talk(self) -> None:
        label = self.label
        self.talk = gr.State(None)
        self.chat = gr.Chatbot(height="62vh", show_label=False, elem_id="chat", buttons=["copy"], allow_tags=False,
                               feedback_options=None, placeholder=label("empty"), group_consecutive_messages=False,
                               layout="bubble")  # fmt: skip
        self.box = gr.MultimodalTextbox(file_types=_FILES, file_count="multiple", placeholder=label("ask"),
                                        show_label=False, max_lines=8, elem_id="box", autofocus=False,
                                        max_plain_text_length=100_000)  # fmt: skip
        with gr.Row(elem_id="votes"):
            votes = self.page.votes is not None
            self.up, self.down, self.flag, self.again = [
                gr.Button(label(name), interactive=False, visible=votes or name == "again", elem_id=name, size="sm")
                for name in ("up", "down", "flag", "again")
            ]
            self.clear = gr.Button(label("clear"), elem_id="clear", size="sm")

    def _examples(self) -> None:
        rows = [[{"text": found.text, "files": [str(file) for file in found.files]}] for found in self.page.examples]
        self.examples = None
        if rows:
            self.examples = gr.Examples(rows, [self.box], label=self.label("examples"), elem_id="examples",
                                        cache_examples=False)  # fmt: skip

    def _wire(self, blocks: gr.Blocks) -> None:
        controls = [self.model, self.temperature, self.top_p, self.tokens, self.arrangement, self.grid]
        buttons = [self.up, self.down, self.flag, self.again]
        queued: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        at_once: dict[str, Any] = {**queued, "concurrency_limit": None}
        begun = [self.talk, self.chat, self.box, *buttons]
        sent = self.box.submit(self._sent, [self.box, self.talk, self.mode, *controls], begun, **at_once)
        again = self.again.click(self._again, [self.talk, *controls], begun, **at_once)
        for event in (sent, again):
            event.success(self._answered, [self.talk, *controls], [self.chat, self.box, *buttons], **queued)
        self.box.stop(self._stopped, [self.talk], [self.chat, self.box, *buttons], **at_once)
        for event in (self.clear.click, self.chat.clear):
            event(self._cleared, self.talk, begun, **at_once)
        blocks.unload(self._left)
        for button, kind in ((self.up, UP), (self.down, DOWN), (self.flag, FLAG)):
            button.click(self._voted(kind), [self.talk, *controls], buttons[:3], **at_once)
        if self.examples is not None:
            self.examples.dataset.select(self._arranged, None, self.arrangement, **at_once)
        self.arrangement.change(_grid, self.arrangement, self.grid, **at_once)
        if self.page.models is None:
            for event in (blocks.load, self.reload.click):
                event(self._models, [self.model], [self.model], **at_once)

    async def _models(self, chosen: str | None) -> Any:
        try:
            names = await self.page.server.models()
        except AskError as error:
            gr.Warning(html.escape(str(error)))
            names = []
        value = chosen if chosen in names else next(iter(names), None)
        return gr.update(choices=names, value=value)

    async def _arranged(self, chosen: gr.SelectData) -> str:
        """How the pictures of an example belong together."""
        return self.page.examples[int(chosen.index)].arrangement

    async def _sent(
        self, request: gr.Request, asked: dict[str, Any], talk: Talk | None, mode: str, *controls: str | float
    ) -> list[Any]:
        text, files = (asked.get("text") or "").strip(), asked.get("files") or []
        if not text:
            raise self._error("type_question", request)
        if len(files) > _AT_ONCE:
            raise self._error("too_many", request, most=_AT_ONCE)
        settings = self._settings(controls, request)
        try:
            pictures = await asyncio.to_thread(self._taken, files, mode)
            talk = Talk() if talk is None or talk.dropped else talk
            await asyncio.to_thread(talk.asked, text, pictures, settings, self.page.folder)
        except DataError as error:
            raise self._told(str(error)) from None
        except FileNotFoundError:
            raise self._error("gone", request) from None
        return [talk, talk.shown(WAIT), _working(), *_buttons(ready=False)]

    def _taken(self, files: Sequence[str], mode: str) -> tuple[Picture, ...]:
        return tuple(taken(Path(file), mode, self.page.folder) for file in files)

    async def _again(self, request: gr.Request, talk: Talk | None, *controls: str | float) -> list[Any]:
        if talk is None or talk.dropped:
            raise self._error("type_question", request)
        talk.again(self._settings(controls, request))
        return [talk, talk.shown(WAIT), gr.update(submit_btn=False, stop_btn=True), *_buttons(ready=False)]

    async def _answered(
        self, request: gr.Request, talk: Talk | None, *controls: str | float
    ) -> AsyncIterator[list[Any]]:
        if talk is None or talk.dropped:  # cleared while it waited for its turn
            yield self._at_rest(Talk())
            return
        last, run = talk.turns[-1], _Run()
        self._runs[str(request.session_hash)] = run
        try:
            body = await asyncio.to_thread(talk.body, self._settings(controls, request))
            if last.stopped:
                run.stop.set()
            told = 0.0
            async for text in until(run.stop, self.page.server.answer(body)):
                last.answer += text
                if time.monotonic() - told > _BETWEEN:
                    told = time.monotonic()
                    yield [talk.shown(WAIT), *[gr.skip()] * 5]
        except AskError as error:
            last.error = str(error)
        except FileNotFoundError:
            last.error = self._word("gone", request)
        except Exception:  # noqa: BLE001 - the conversation goes on, and the log has the reason
            get_logger(__name__).exception("an answer failed")
            last.error = self._word("failed", request)
        finally:
            run.ended.set()
            if self._runs.get(str(request.session_hash)) is run:
                del self._runs[str(request.session_hash)]
        yield [gr.skip()] * 6 if run.cleared else self._at_rest(Talk() if talk.dropped else talk)

    async def _halt(self, request: gr.Request, *, cleared: bool = False) -> None:
        """End the answer of a browser; returns when nothing more of it will be drawn."""
        run = self._runs.get(str(request.session_hash))
        if run is not None:
            run.cleared = cleared
            run.stop.set()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(run.ended.wait(), _HALT_SECONDS)

    async def _stopped(self, request: gr.Request, talk: Talk | None) -> list[Any]:
        if talk is not None:
            talk.turns[-1].stopped = True
        await self._halt(request)
        return self._at_rest(talk or Talk())

    async def _cleared(self, request: gr.Request, talk: Talk | None) -> list[Any]:
        if talk is not None:
            talk.dropped = True
        await self._halt(request, cleared=True)
        return [None, [], gr.update(value=None, submit_btn=True, stop_btn=False), *_buttons(ready=False)]

    async def _left(self, request: gr.Request) -> None:
        """The browser has gone: nobody reads the answer."""
        await self._halt(request, cleared=True)

    def _at_rest(self, talk: Talk) -> list[Any]:
        """The window, the box and the buttons when no answer is on its way."""
        ready = bool(talk.turns)
        return [talk.shown(), _ready(), *_buttons(ready=ready, voting=ready and bool(talk.turns[-1].answer))]

    def _voted(self, kind: str) -> Callable[..., Any]:
        async def voted(request: gr.Request, talk: Talk | None, *controls: str | float) -> list[Any]:
            if self.page.votes is not None and talk is not None and talk.turns:
                try:
                    await asyncio.to_thread(self.page.votes.add, kind, talk, self._settings(controls, request))
                except ConfigError as error:
                    raise self._told(str(error)) from None
                gr.Info(self._word("thanks", request))
            return [gr.update(interactive=False)] * 3

        return voted

    def _settings(self, controls: Sequence[str | float], request: gr.Request) -> Settings:
        model, temperature, top_p, tokens, arrangement, grid = controls
        if not model:
            raise self._error("no_model", request)
        return Settings(str(model), float(temperature), float(top_p), int(tokens), str(arrangement), int(grid))

    def _word(self, name: str, request: gr.Request, **values: int) -> str:
        language = self.page.language or words.preferred(request.headers.get("accept-language", ""))
        return words.text(name, language).format(**values)

    def _error(self, name: str, request: gr.Request, **values: int) -> gr.Error:
        return self._told(self._word(name, request, **values))

    def _told(self, message: str) -> gr.Error:
        return gr.Error(html.escape(message), print_exception=False)


def _working() -> Any:
    """The box while an answer comes: empty, with a button that stops it."""
    return gr.update(value=None, submit_btn=False, stop_btn=True)


def _ready() -> Any:
    return gr.update(submit_btn=True, stop_btn=False)


def _grid(arrangement: str) -> Any:
    return gr.update(visible=arrangement == SHEET)


def _buttons(*, ready: bool, voting: bool = False) -> list[Any]:
    """The three votes and the button that asks again."""
    return [*[gr.update(interactive=ready and voting)] * 3, gr.update(interactive=ready)]
