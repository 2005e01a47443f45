# SPDX-License-Identifier: Apache-2.0
"""How much one request, and all of them together, may ask of the server. A request cannot change any of it."""

from dataclasses import dataclass, field

from paddlemix.imaging.load import ImageLimits
from paddlemix.utils.files import MIB


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. Figures marked "OpenAI" are those of OpenAI's API.

    ``requests``: those that are answered or wait at a time; one more gets 429. ``held_bytes``: bodies of all of them.
    ``marks``: brackets, braces and commas of a body, of which each can become an object of Python.
    ``linger_seconds``: a refused body is still read (and dropped) so long, so that its sender gets to see the answer.
    ``pixels``: all images of a request together. ``stuck``: a step of the model that takes longer is a fault of the
    server (the first steps on a device that compiles its kernels take minutes).
    """

    requests: int = 128
    slots: int = 8
    connections: int = 1024
    header_bytes: int = 32 << 10
    header_seconds: float = 5.0
    body_bytes: int = 32 * MIB
    body_seconds: float = 30.0
    held_bytes: int = 512 * MIB
    marks: int = 300_000
    linger_seconds: float = 2.0
    write_seconds: float = 30.0
    request_seconds: float = 600.0
    keep_alive_seconds: float = 5.0
    drain_seconds: float = 30.0
    stuck_seconds: float = 600.0
    messages: int = 256
    parts: int = 1024
    text_chars: int = 256 << 10
    images: int = 16
    pixels: int = 100_000_000
    choices: int = 8
    stops: int = 16
    stop_chars: int = 256
    image: ImageLimits = field(default_factory=ImageLimits)
    image_hosts: tuple[str, ...] = ()
    """Hosts from which images are fetched; none by default."""
