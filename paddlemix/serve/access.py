# SPDX-License-Identifier: Apache-2.0
"""Who may ask: API keys, and without them this machine's own programs only."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from paddlemix.serve.faults import RequestError
from paddlemix.utils.errors import ConfigError
from paddlemix.utils.foreign import read_text

LOOPBACK = ("127.0.0.1", "::1", "localhost")
SHORTEST = 16
"""Characters of a key."""


@dataclass(frozen=True)
class Access:
    """``keys`` are digests: a comparison tells nothing of a key's length, and a dump of the process shows none."""

    keys: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, keys: Sequence[str]) -> "Access":
        """The access for these keys."""
        return cls(tuple(_digest(key.encode()) for key in keys))

    def adding(self, key: str) -> "Access":
        """One more key where keys are needed; without any, programs of this machine go on without."""
        return Access((*self.keys, _digest(key.encode()))) if self.keys else self

    def check_key(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """RequestError unless one of the keys is shown. The same answer whatever is wrong with it."""
        scheme, _, key = dict(headers).get(b"authorization", b"").partition(b" ")
        given = _digest(key.strip())
        good = [hmac.compare_digest(given, known) for known in self.keys]
        if not any(good) or scheme.lower() != b"bearer":
            raise RequestError(401, "an API key is needed: Authorization: Bearer KEY", code="invalid_api_key")

    def check(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """RequestError unless a request with these headers may pass."""
        found = dict(headers)
        if self.keys:
            self.check_key(headers)
        elif _host(found.get(b"host", b"")) not in LOOPBACK:
            # Without keys a page of the web could reach the server by a name of its own that leads to 127.0.0.1.
            raise RequestError(403, "without an API key this server answers to 127.0.0.1 and localhost only")
        origin = found.get(b"origin")
        if origin is not None and origin.partition(b"://")[2] != found.get(b"host"):
            raise RequestError(403, "requests of pages of other origins are not answered")


def access_of(host: str, keys: Sequence[str], key_file: Path | None) -> Access:
    """The access of a server that is bound to ``host``; ConfigError for an open one without a key."""
    found = [*keys]
    if key_file is not None:
        found += keys_of(key_file)
    for key in found:
        _check_form(key)
    if not found and host not in LOOPBACK:
        raise ConfigError(
            f"--host {host} lets other machines ask; give --api-key-file FILE (or --api-key KEY), or --host 127.0.0.1"
        )
    return Access.of(found)


def keys_of(file: Path) -> list[str]:
    """The keys of a file; ConfigError when it holds none."""
    lines = read_text(file, ConfigError).splitlines()
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise ConfigError(f"{file}: holds no key; write one a line, of {SHORTEST} characters or more")
    return found


def token_of(file: Path) -> str:
    """The secret that a controller and its workers share; ConfigError for a file without one."""
    token = read_text(file, ConfigError).strip()
    _check_form(token)
    return token


def _check_form(key: str) -> None:
    if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"a key or token has {SHORTEST} printable ASCII characters or more, without blanks; this one has {len(key)}"
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _host(header: bytes) -> str:
    text = header.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]
