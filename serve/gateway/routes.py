"""The HTTP face of a server: the page, its health, its models, pipelines, and the Open Inference Protocol.

What lies under /models/NAME is mostly answered by the model's own application, without the gateway.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.staticfiles import StaticFiles

from library.pipeline import Pipeline
from library.steps.examples import EXAMPLES
from library.steps.help import StepHelp, ordered_steps, step_help
from serve.gateway.preview import Previewer
from serve.http.access_control import AccessControl
from serve.http.dispatch import answered, describe_all, find_model
from serve.http.middleware import ResponseMiddleware, allow_origins
from serve.http.model_routes import add_model_routes
from serve.http.openapi import PNG, describe_api, make_app, pictures_body, problems
from serve.http.problem_details import handle_problems
from serve.http.schemas import Live, Models, ModelState, PipelineText, Ready
from serve.http.service import ModelService
from serve.http.uploads import JsonPictures, read_picture
from serve.protocol.messages import InferRequest
from serve.protocol.open_inference import add_protocol
from serve.settings import ServeSettings

_Steps = Annotated[str, Query(description='a pipeline, such as `grayscale | edges(direction="vertical")`')]


def gateway_app(models: Mapping[str, ModelService], settings: ServeSettings) -> FastAPI:
    """The application for the route prefix /.

    Args:
        models: by name, those that are served; asked anew at each request, so what is in it may change.
        settings: limits and keys; the same as of the models.

    Raises:
        UsageError: for a wrong line among the keys, or a key file that is not there.
    """
    previewer = Previewer(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        previewer.close()

    app = make_app("Striate", "Picture classifiers: what they say, what they see, and what there is.", lifespan)
    handle_problems(app)
    add_model_routes(
        app, "/models/{name}", lambda request: find_model(request, models, request.path_params["name"]), settings
    )
    _add_health(app, models)
    _add_pipelines(app, previewer, settings)
    add_protocol(app, models, settings)
    _add_absent_models(app, models)
    _add_pages(app)
    describe_api(app, settings, [JsonPictures, InferRequest])

    app.add_middleware(AccessControl, settings=settings, is_open=_is_open)
    allow_origins(app, settings.cors_origins)
    app.add_middleware(ResponseMiddleware)
    return app


def _is_open(method: str, path: str) -> bool:
    """Whether a request needs no key: for liveness, the page and the docs, which name no model.

    They are the same on every server of this version with the same options (docs/decisions/0007).
    """
    return method == "GET" and (path in ("/healthz", "/", "/docs", "/openapi.json") or path.startswith("/web/"))


def _add_health(app: FastAPI, models: Mapping[str, ModelService]) -> None:
    open_to_all = {"security": list[Any]()}

    @app.get("/healthz", summary="Whether the server runs; needs no key", openapi_extra=open_to_all)
    async def healthz() -> Live:
        return Live(status="live")

    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "not all do"}}

    @app.get("/readyz", summary="Whether all models answer", responses=not_ready | problems())
    async def readyz(response: Response) -> Ready:
        states = [ModelState(name=one.name, ready=one.ready, state=one.state) for one in await describe_all(models)]
        ready = bool(states) and all(state.ready for state in states)
        response.status_code = 200 if ready else 503
        return Ready(ready=ready, models=states)

    @app.get("/models", summary="The models there are", responses=problems())
    async def list_models() -> Models:
        return Models(models=await describe_all(models))


def _add_pipelines(app: FastAPI, previewer: Previewer, settings: ServeSettings) -> None:
    @app.get("/steps", summary="The steps of pipelines", responses=problems())
    async def list_steps() -> list[StepHelp]:
        return [step_help(cls, EXAMPLES[cls.name]) for cls in ordered_steps()]

    @app.get("/pipeline", summary="Check a pipeline", responses=problems())
    async def check(steps: _Steps) -> PipelineText:
        """The canonical text, or a problem with the place (`offset` and `length` in characters) of the mistake."""
        return PipelineText(ok=True, canonical=str(Pipeline.parse(steps)))

    @app.post(
        "/preview",
        summary="A picture after steps",
        responses=PNG | problems(400, 408, 413, 415, 503, 504),
        response_class=Response,
        openapi_extra=pictures_body(several=False),
    )
    async def preview(request: Request, steps: _Steps) -> Response:
        """As PNG. Of augmentations it shows one variant; a picture that a selector drops is a problem that says so."""
        Pipeline.parse(steps)
        upload = await read_picture(request, settings)
        return Response(await answered(request, settings, previewer.show(upload.data, steps)), media_type="image/png")


def _add_absent_models(app: FastAPI, models: Mapping[str, ModelService]) -> None:
    """What is no address of a model; above all of a model that there is not."""
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]

    @app.api_route("/models/{name}", methods=methods, include_in_schema=False)
    @app.api_route("/models/{name}/{rest:path}", methods=methods, include_in_schema=False)
    async def absent(request: Request, name: str, rest: str = "") -> Response:
        find_model(request, models, name)
        raise HTTPException(404)


def _add_pages(app: FastAPI) -> None:
    """Answers / with the page, /docs with Swagger UI, and /web/NAME with what they need."""
    files = StaticFiles(directory=Path(__file__).parents[1] / "web", packages=[("fastapi_offline", "static")])

    async def file(request: Request, name: str) -> Response:
        response = await files.get_response(name, request.scope)
        # Kept by browsers, but asked for again each time: a new version is seen at once.
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await file(request, "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return await file(request, "docs.html")

    app.get("/web/{name:path}", include_in_schema=False)(file)
