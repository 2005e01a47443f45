# SPDX-License-Identifier: Apache-2.0
"""The images of a request, checked before any is decoded: data: addresses, and http(s) from the operator's hosts.

Everything here runs in worker threads, neither in the event loop nor in the engine's thread.
"""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType

from paddlemix.generation.features import Prepared, prepared
from paddlemix.imaging.load import image_size, load_image
from paddlemix.imaging.processor import ImageProcessor
from paddlemix.imaging.views import Views
from paddlemix.serve.faults import RequestError, refused
from paddlemix.serve.limits import Limits
from paddlemix.utils import addresses
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.files import fetch
from paddlemix.utils.shown import shown


@dataclass(frozen=True)
class Place:
    """The images of one image place: their addresses or base64 texts, how they are cut, and where they stood."""

    sources: tuple[str, ...]
    param: str
    views: Views = field(default_factory=Views)


def check_address(text: str, param: str, limits: Limits) -> None:
    """RequestError for an address that is never opened: files, hosts outside the list, anything odd."""
    if text[:11].lower() == "data:image/":
        return
    if text[:8].lower().startswith(("http://", "https://")):
        try:
            host = addresses.parse(text).host
        except DataError as error:
            raise refused(str(error), param) from None
        if host.lower().rstrip(".") in limits.image_hosts:
            return
        raise refused(
            f"images of the host {shown(host)} are not fetched by this server; send the image as data:image/...;base64",
            param,
        )
    raise refused('an image is given as "data:image/...;base64,..."', param)


def opened(places: Sequence[Place], processor: ImageProcessor, limits: Limits) -> tuple[list[Prepared], list[int]]:
    """The images ready for the tower, and how many stand at each place. RequestError names the part that is wrong."""
    files = [[_bytes(source, place.param, limits) for source in place.sources] for place in places]
    left = limits.pixels
    for place, contents in zip(places, files, strict=True):
        for content in contents:
            with _named(place.param):
                height, width = image_size(content, limits.image, name="the image")
            left -= height * width
            if left < 0:
                message = f"the images of the request have more than {limits.pixels} pixels together"
                raise refused(f"{message}; make them smaller", place.param)
    found, counts = [], []
    for place, contents in zip(places, files, strict=True):
        with _named(place.param):
            views = place.views.cut([load_image(content, limits.image, name="the image") for content in contents])
            made = [prepared(view, processor) for view in views] * place.views.repeat
        found += made
        counts.append(len(made))
    return found, counts


def _bytes(source: str, param: str, limits: Limits) -> bytes:
    """The bytes of an image of an address that ``check_address`` let through, or of plain base64."""
    if source[:4].lower() == "http":
        with _named(param):
            return fetch(source, limits.image.max_bytes, limits.image.fetch_seconds)
    head, comma, body = source.partition(",")
    if comma and not head.lower().endswith(";base64"):
        raise refused('an image is given as "data:image/...;base64,..."', param)
    body = "".join((body if comma else head).split())
    if len(body) * 3 // 4 > limits.image.max_bytes + 2:
        raise refused(f"the image has more than {limits.image.max_bytes} bytes; make it smaller", param)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise refused("the image is not valid base64", param) from None


class _named:  # noqa: N801 - reads as a word of the with statement
    """Errors of the image room with the parameter of the request."""

    def __init__(self, param: str) -> None:
        self.param = param

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, DataError | ConfigError):
            raise refused(str(error), self.param) from None
        if isinstance(error, MemoryError):
            raise RequestError(413, "the image does not fit into memory", param=self.param) from None
