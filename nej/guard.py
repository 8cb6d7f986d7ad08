"""Around each request: security headers, time for its body, what Prometheus counts."""

import asyncio
import time

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nej.signals import Signals

BODY_SECONDS = 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
                               "img-src 'self'; connect-src 'self'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, signals: Signals):
        self.app, self.signals = app, signals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status, whole = 500, False
        started = time.perf_counter()

        async def receive_in_time() -> Message:
            nonlocal whole
            if whole:  # from here on one waits for the client to go
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the body did not come in time",
                                    {"Connection": "close"}) from None
            whole = not message.get("more_body", False)
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
            await self.app(scope, receive_in_time, send_guarded)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self.signals.requests.labels(path, str(status)).inc()
            self.signals.request_seconds.labels(path).observe(time.perf_counter() - started)
