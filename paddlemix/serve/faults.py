# SPDX-License-Identifier: Apache-2.0
"""What a client is told when its request cannot be answered, in the form of OpenAI's API."""

from typing import Any

from paddlemix.utils.shown import readable


class RequestError(Exception):
    """A request that is refused or fails: HTTP status, text, the parameter it is about, and OpenAI's code.

    ``retry_after`` seconds are sent with the refusals that another try may not meet.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry_after: int = 0
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = readable(message)
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, Any]:
        """``{"error": {"message", "type", "param", "code"}}``."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the answer."""
        found = {"retry-after": str(self.retry_after)} if self.retry_after else {}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


_KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


def refused(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """A fault of the caller (400)."""
    return RequestError(400, message, param=param, code=code)


def overloaded(message: str, retry_after: int = 1) -> RequestError:
    """No place for one more request (429)."""
    return RequestError(429, message, code="rate_limit_exceeded", retry_after=retry_after)


def unavailable(message: str, code: str, retry_after: int = 5) -> RequestError:
    """The server cannot answer now (503)."""
    return RequestError(503, message, code=code, retry_after=retry_after)


def failed(request_id: str) -> RequestError:
    """A fault of the server (500): what it was stands in the log under this id and is not sent."""
    return RequestError(500, f"the request failed; the server's log has the reason under {request_id}", code="failed")
