# SPDX-License-Identifier: Apache-2.0
"""A page from its socket to its end. What browsers send lies in a folder of its own, which ends with the process."""

import asyncio
import contextlib
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlemix.serve.access import Access
from paddlemix.serve.limits import Limits
from paddlemix.serve.listening import Server, bound_socket
from paddlemix.utils import env

LIMITS = Limits(drain_seconds=1.0, write_seconds=60.0)
_SETTINGS = {
    "GRADIO_ANALYTICS_ENABLED": "False",
    "GRADIO_RUN_HISTORY": "False",
    "GRADIO_SSR_MODE": "False",
    "GRADIO_MCP_SERVER": "False",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
"""gradio sends nothing anywhere: no counts of use, no question for its newest version."""
PICTURE_BYTES = LIMITS.image.max_bytes
KEEP_SECONDS = 6 * 3600
_SWEEP_SECONDS = 600


@dataclass(frozen=True)
class Listening:
    """Where the page listens, for whom, and whether gradio's tunnel makes it public."""

    host: str
    port: int
    access: Access
    share: bool = False


@contextlib.contextmanager
def upload_folder() -> Iterator[Path]:
    """The folder of uploads, and gradio told of it; gradio has to be imported inside the block."""
    with tempfile.TemporaryDirectory(prefix="paddlemix-page-", ignore_cleanup_errors=True) as name:
        for setting, value in {**_SETTINGS, "GRADIO_TEMP_DIR": name}.items():
            env.put(setting, value)
        yield Path(name)


def sweep(folder: Path, kept: Collection[Path], seconds: float = KEEP_SECONDS) -> None:
    """Remove the files below ``folder`` that are older than ``seconds``, but those of ``kept``."""
    oldest = time.time() - seconds
    for file in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # another request has removed it
            if file.is_file() and file not in kept and file.stat().st_mtime < oldest:
                file.unlink()


async def _sweeping(folder: Path) -> None:
    kept = set(folder.rglob("*"))  # the examples
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await asyncio.to_thread(sweep, folder, kept)


def serve(listening: Listening, folder: Path, build: Callable[[], Any]) -> int:
    """Serve the blocks that ``build`` gives until a signal comes; the exit code. On the main thread."""
    listener = bound_socket(listening.host, listening.port)
    import gradio
    from fastapi import FastAPI

    from paddlemix.serve.page.guard import PageGuard
    from paddlemix.serve.page.view import CSS, theme, translations

    app = gradio.mount_gradio_app(
        FastAPI(docs_url=None, redoc_url=None, openapi_url=None), build(), "/", footer_links=[],
        show_error=False, max_file_size=PICTURE_BYTES, ssr_mode=False, enable_monitoring=False, pwa=False,
        mcp_server=False, i18n=translations(), theme=theme(), css=CSS,
    )  # fmt: skip
    pages = app.routes[-1].app
    guarded = PageGuard(app, listening.access, folder)

    async def run() -> None:
        loop = asyncio.get_running_loop()
        server = Server(guarded, LIMITS, lambda: loop.call_soon_threadsafe(pages.stop_event.set))
        async with app.router.lifespan_context(app):
            if listening.share:
                threading.Thread(target=_share, args=listener.getsockname()[:2], daemon=True).start()
            sweeping = asyncio.create_task(_sweeping(folder))
            await server.serve(sockets=[listener])
            sweeping.cancel()

    asyncio.run(run())
    return 0


def _share(host: str, port: int) -> None:
    from gradio.networking import setup_tunnel

    try:
        address = setup_tunnel(host, port, secrets.token_urlsafe(32), None, None)
        sys.stderr.write(f"anybody with a key reaches the page at {address}\n")
    except Exception as error:  # noqa: BLE001 - the page goes on without it
        sys.stderr.write(f"gradio's tunnel cannot be had: {error}\n")
    sys.stderr.flush()
