"""The web service's addresses: what each takes, answers and refuses."""

import asyncio
import hmac
import signal
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from nej.web.batcher import Closed, Full
from nej.web.guard import HEADERS, Guard
from nej.web.reference import reference
from nej.web.schemas import (
    BODY_BYTES, ModelDescription, OneOrMore, Predictions, Problem, State, sentence,
)
from nej.web.service import Gone, Service
from nej.web.serving import Settings

PAGE = Path(__file__).with_name("page")
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript",
         ".svg": "image/svg+xml"}
RETRY = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
REFUSALS: dict[int, dict[str, Any]] = {
    400: {"description": "The body cannot be parsed"},
    408: {"description": "The body did not come in time"},
    413: {"description": f"The body is over {BODY_BYTES:,} bytes"},
    422: {"description": "Something in the request is not as described"},
    429: {"description": "Too many papers wait already", "headers": RETRY},
    503: {"description": "No answer before the deadline, or the service is being stopped",
          "headers": RETRY},
}
DESCRIPTION = """Sorts arXiv papers into categories by their summaries.

Probabilities are calibrated on validation papers. Where the most probable category is under the
model's threshold, it says that it abstains. GET /model tells what the model knows and how good
it is."""


def create_app(settings: Settings) -> FastAPI:
    """Return the application, its model loaded.

    Raises:
        InputError: no model that can be served, or a log that cannot be written.
    """
    service = Service(settings)
    app = FastAPI(title="nej", version=_version(), description=DESCRIPTION, docs_url=None,
                  redoc_url=None, lifespan=_lifespan,
                  exception_handlers={RequestValidationError: _invalid, 400: _unreadable,
                                      Exception: _broken})
    app.state.service = service
    locks = [Depends(_lock(settings.token))] if settings.token else []
    app.include_router(_predicting(service), dependencies=locks,
                       responses=_problems({401: {"description": "No valid token"}})
                       if locks else None)
    app.include_router(_watching(service))
    app.include_router(_pages(app))
    if settings.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins,
                           allow_methods=["GET", "POST"],
                           allow_headers=["Authorization", "Content-Type"])
    app.add_middleware(Guard, signals=service.signals)
    return app


def _problems(found: dict[int, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem, **what} for status, what in found.items()}


def _predicting(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/predict", responses=_problems(REFUSALS), tags=["papers"])
    async def predict(
        request: Request, body: OneOrMore,
        top_k: Annotated[int, Query(ge=1, le=1000, description="categories of each paper")] = 5,
    ) -> Predictions:
        """Sort a paper, or each paper of a list."""
        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass
        papers = body if isinstance(body, list) else [body]
        try:
            return await service.predict(papers, top_k=top_k, disconnected=disconnected)
        except Full as full:
            _refuse(429, full.seconds, f"{service.batcher.waiting} papers wait; try again in "
                                       f"{full.seconds} s")
        except Closed:
            _refuse(503, 5, "the service is being stopped; try again in 5 s")
        except TimeoutError:
            seconds = service.batcher.seconds_to_wait()
            limit = service.settings.deadline_seconds
            _refuse(503, seconds, f"no answer within {limit:g} s, there is too much to do; try "
                                  f"again in {seconds} s")
        except Gone:
            raise HTTPException(499, "the client went away") from None

    @router.get("/model", tags=["papers"])
    async def model() -> ModelDescription:
        """Tell which model answers, what it was made from and how good it is."""
        return service.describe()

    @router.get("/metrics", response_class=Response, tags=["operation"], responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}}})
    def metrics() -> Response:
        """Tell Prometheus about load, answers and papers."""
        return PlainTextResponse(service.signals.text())
    return router


def _refuse(status: int, seconds: int, detail: str) -> NoReturn:
    raise HTTPException(status, detail, {"Retry-After": str(seconds)}) from None


def _watching(service: Service) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/health")
    async def health() -> State:
        """Tell that the process lives."""
        return State(status="alive")

    @router.get("/ready", responses=_problems({503: {"description": "It takes no papers"}}))
    async def ready() -> State:
        """Tell whether papers would be answered."""
        if not service.batcher.works:
            raise HTTPException(503, "the service is being stopped, or its model broke")
        return State(status="ready")
    return router


def _pages(app: FastAPI) -> APIRouter:
    """Return what people see: the page at /, and the description of the API at /docs."""
    router = APIRouter(include_in_schema=False)
    files = {path.name: path.read_bytes() for path in PAGE.iterdir() if path.suffix in KINDS}

    def add(address: str, content: bytes, kind: str) -> None:
        async def page() -> Response:
            return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})
        router.add_api_route(address, page, methods=["GET", "HEAD"])
    for name, content in files.items():
        add("/" if name == "index.html" else f"/{name}", content, KINDS[Path(name).suffix])

    @router.get("/docs")
    async def docs() -> Response:
        return Response(reference(app.openapi()), media_type="text/html")
    return router


def _lock(token: str):
    async def check(given: Annotated[HTTPAuthorizationCredentials | None,
                                     Depends(HTTPBearer(auto_error=False))]) -> None:
        """Raise HTTPException unless the request carries the token."""
        if not given or not hmac.compare_digest(given.credentials.encode(), token.encode()):
            raise HTTPException(401, "a valid token is needed: Authorization: Bearer ...",
                                {"WWW-Authenticate": "Bearer"})
    return check


@asynccontextmanager
async def _lifespan(app: FastAPI):
    service: Service = app.state.service
    watching = asyncio.create_task(service.model.watch())
    reloading: set[asyncio.Task] = set()  # which nobody else holds

    def reload() -> None:
        reloading.add(task := asyncio.create_task(service.model.reload()))
        task.add_done_callback(reloading.discard)
    try:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        pass  # no such signal, or not the main thread: the watch remains
    yield
    watching.cancel()
    await asyncio.to_thread(service.close)


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    if isinstance(error.body, bytes) and error.body:  # FastAPI took it for no JSON
        return JSONResponse({"detail": "the body must be JSON, with Content-Type: "
                                       "application/json"}, 422)
    # what was sent is not sent back: it may be long, no valid text, or not a number
    return JSONResponse({"detail": sentence(error.errors())}, 422)


async def _unreadable(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "the body cannot be parsed; it must be JSON in UTF-8, neither "
                                   "nested deeply nor with numbers of thousands of digits"}, 400)


async def _broken(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "an error in nej; the service's log has it"}, 500, HEADERS)


def _version() -> str:
    try:
        return version("nej")
    except PackageNotFoundError:  # a plain checkout
        return "0"
