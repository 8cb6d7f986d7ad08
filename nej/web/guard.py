"""Around each request: security headers, limits of its body, what Prometheus counts."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http import h11_impl

from nej.web.schemas import BODY_BYTES
from nej.web.signals import Signals

BODY_SECONDS = 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "img-src 'self'; connect-src 'self'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


async def too_many_connections(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse a request that comes when the process has as many connections as it may."""
    answer = JSONResponse({"detail": "too many connections; come again in a second"}, 503,
                          HEADERS | {"Retry-After": "1", "Connection": "close"})
    await answer(scope, receive, send)


# uvicorn's own does not say when to come again
h11_impl.service_unavailable = too_many_connections  # type: ignore[assignment]  # its types differ


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, signals: Signals):
        self.app, self.signals = app, signals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, whole, size_bytes = 500, False, 0
        started = time.perf_counter()
        announced = int(dict(scope["headers"]).get(b"content-length", 0))  # digits, says uvicorn

        async def receive_within_limits() -> Message:
            # FastAPI's own limit would answer with a text where all else is JSON
            nonlocal whole, size_bytes
            if whole:  # from here on one waits for the client to go
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time",
                                    {"Connection": "close"}) from None
            size_bytes += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if max(size_bytes, announced) > BODY_BYTES:
                raise HTTPException(413, f"the body is over {BODY_BYTES:,} bytes",
                                    {"Connection": "close"})
            return message

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message.setdefault("headers", []).extend(
                    (name.lower().encode(), value.encode()) for name, value in HEADERS.items())
            await send(message)
        deadline = asyncio.get_running_loop().time() + BODY_SECONDS
        try:
            await self.app(scope, receive_within_limits, send_guarded)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.signals.requests.labels(path, str(status)).inc()
            self.signals.request_seconds.labels(path).observe(time.perf_counter() - started)
