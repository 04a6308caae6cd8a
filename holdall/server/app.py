"""The routes: OpenAI's under /v1, and a page, memory, quality, metrics and health for whoever runs the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from holdall import __version__
from holdall.server import faults, schemas
from holdall.server.faults import Refusal
from holdall.server.guard import Guard
from holdall.server.metrics import CONTENT_TYPE, Metrics, parts
from holdall.server.service import Service
from holdall.server.stream import EventStream, Form, watched

PAGE = Path(__file__).with_name("page.html")
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:"
_FAULTS: dict[int | str, dict[str, Any]] = {
    code: {"model": schemas.Failure}
    for code in (400, 401, 403, 404, 405, 408, 413, 415, 429, 499, 500, 503, 504)
}
_EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
_STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": _EVENT}}}}


class HoldallApp(FastAPI):
    """FastAPI, whose description says what this server really answers (400 and not 422 to a wrong request)."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            for path in super().openapi()["paths"].values():
                for told in path.values():
                    told["responses"].pop("422", None)
        assert self.openapi_schema is not None
        return self.openapi_schema


def create(service: Service, quality: dict[str, Any]) -> ASGIApp:
    """The application of one model; `quality` is what is known of its methods (see `schemas.Quality`)."""
    app = HoldallApp(title="Holdall", version=__version__, docs_url=None, redoc_url=None, responses=_FAULTS)
    metrics = Metrics(service.worker)
    _answers(app, service, metrics)
    _models(app, service)
    _around(app, service, metrics, quality)
    _handlers(app)
    settings = service.settings
    places = settings.queue + service.runner.slots + 16  # some more may be about to be refused
    return Counted(Guard(app, settings, places), metrics, {getattr(r, "path", "") for r in app.routes})


def _answers(app: FastAPI, service: Service, metrics: Metrics) -> None:
    async def answer(body: schemas.ChatRequest | schemas.CompletionRequest, request: Request) -> Response:
        form = Form(service, isinstance(body, schemas.ChatRequest))
        ticket = await service.begin(body)
        try:
            async with watched(request.receive, service, ticket):
                news = await service.told(ticket)
                if body.stream:
                    usage = bool(body.stream_options and body.stream_options.include_usage)
                    return EventStream(service, ticket, news, form, usage, metrics)
                text = news.text
                while not news.end:
                    news = await service.told(ticket)
                    text += news.text
        except BaseException:
            service.worker.drop(ticket)
            raise
        metrics.answered(ticket)
        return JSONResponse(form.whole(text, news.end, service.usage(ticket)))

    @app.post("/v1/chat/completions", response_model=schemas.ChatAnswer, responses=_STREAMED)
    async def chat(body: schemas.ChatRequest, request: Request) -> Response:
        """Answer a conversation."""
        return await answer(body, request)

    @app.post("/v1/completions", response_model=schemas.TextAnswer, responses=_STREAMED)
    async def complete(body: schemas.CompletionRequest, request: Request) -> Response:
        """Go on with a text."""
        return await answer(body, request)


def _models(app: FastAPI, service: Service) -> None:
    def told() -> schemas.Model:
        return schemas.Model(
            id=service.settings.name, created=service.created, context=service.runner.context
        )

    @app.get("/v1/models")
    async def models() -> schemas.Models:
        """The one model of this server."""
        return schemas.Models(data=[told()])

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> schemas.Model:
        """One model."""
        if name != service.settings.name:
            raise Refusal(404, f"the model {name[:100]!r} does not exist", "model_not_found", "model")
        return told()


def _around(app: FastAPI, service: Service, metrics: Metrics, quality: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")

    @app.get("/", include_in_schema=False)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": _POLICY})

    @app.get("/health")
    async def health() -> schemas.Health:
        """Whether the server can answer."""
        if not service.worker.alive:
            raise faults.stopping()
        return schemas.Health(status="ok")

    @app.get("/memory")
    async def memory() -> schemas.MemoryNow:
        """Where the memory is now."""
        return schemas.MemoryNow.model_validate(parts(service.worker))

    @app.get("/quality")
    async def known() -> schemas.Quality:
        """What the methods in use cost in quality, where it was measured."""
        return schemas.Quality.model_validate(quality)

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)


def _handlers(app: FastAPI) -> None:
    def told(fault: Refusal) -> JSONResponse:
        return JSONResponse(fault.body(), fault.status, fault.headers)

    @app.exception_handler(Refusal)
    async def refused(_request: Request, fault: Refusal) -> JSONResponse:
        return told(fault)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, fault: RequestValidationError) -> JSONResponse:
        first = fault.errors()[0]
        if first["type"] in ("json_invalid", "missing") and len(first["loc"]) < 3 and "body" in first["loc"]:
            malformed = first["type"] == "json_invalid" or first["loc"] == ("body",)
            if malformed:
                return told(Refusal(400, "the body is not valid JSON", "malformed_json"))
        where = ".".join(str(part) for part in first["loc"][1:])[:200]
        return told(Refusal(400, f"{where or 'body'}: {first['msg']}", "invalid_value", where or None))

    @app.exception_handler(HTTPException)
    async def http(request: Request, fault: HTTPException) -> JSONResponse:
        message = {
            404: f"there is nothing at {request.url.path[:200]}",
            405: "this path takes another method",
        }
        refusal = Refusal(fault.status_code, message.get(fault.status_code, str(fault.detail)))
        return JSONResponse(refusal.body(), fault.status_code, {**refusal.headers, **(fault.headers or {})})

    @app.exception_handler(Exception)
    async def failed(_request: Request, fault: Exception) -> JSONResponse:
        return told(faults.of(fault))


class Counted:
    """Counts requests by path and status; paths that do not exist are counted together."""

    def __init__(self, app: ASGIApp, metrics: Metrics, known: set[str]):
        self.app, self.metrics, self.known = app, metrics, known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                path = scope["path"] if scope["path"] in self.known else "other"
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        await self.app(scope, receive, counted if scope["type"] == "http" else send)
