"""HTTP routes of the gateway: page, health, models, pipelines, and the Open Inference Protocol.

Most requests under /models/NAME go directly to the model's own application, not through the gateway.
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
from serve.http.dispatch import await_answer, describe_all, find_model
from serve.http.middleware import ResponseMiddleware, allow_origins
from serve.http.model_routes import add_model_routes
from serve.http.openapi import HEALTH, MODELS, PIPELINES, PNG, describe_api, make_app, pictures_body, problems
from serve.http.problem_details import handle_problems
from serve.http.schemas import Live, Models, ModelState, PipelineText, Ready
from serve.http.service import ModelService
from serve.http.uploads import JsonPictures, read_picture
from serve.protocol.messages import InferRequest
from serve.protocol.open_inference import add_protocol
from serve.settings import ServeSettings

_Steps = Annotated[str, Query(description='a pipeline, such as `grayscale | edges(direction="vertical")`')]


def gateway_app(models: Mapping[str, ModelService], settings: ServeSettings) -> FastAPI:
    """Returns the application for the route prefix /.

    Args:
        models: the models by name; read at each request, so it may change.
        settings: limits and keys; the same as the models have.

    Raises:
        UsageError: for a wrong line among the keys, or a missing key file.
    """
    previewer = Previewer(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        previewer.close()

    app = make_app(
        "Striate", "Picture classifiers: predictions, input pipelines and the models that are served.", lifespan
    )
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
    """Whether a request needs no key: liveness, the page and the docs, which name no model.

    They are the same on every server of this version with the same options (docs/decisions/0007).
    """
    return method == "GET" and (path in ("/healthz", "/", "/docs", "/openapi.json") or path.startswith("/web/"))


def _add_health(app: FastAPI, models: Mapping[str, ModelService]) -> None:
    open_to_all: dict[str, Any] = {"security": []}

    @app.get("/healthz", tags=[HEALTH], summary="Check that the server runs; needs no key", openapi_extra=open_to_all)
    async def healthz() -> Live:
        return Live(status="live")

    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "some do not"}}

    @app.get("/readyz", tags=[HEALTH], summary="Check that all models answer", responses=not_ready | problems())
    async def readyz(response: Response) -> Ready:
        states = [
            ModelState(name=model.name, ready=model.ready, state=model.state) for model in await describe_all(models)
        ]
        ready = bool(states) and all(state.ready for state in states)
        response.status_code = 200 if ready else 503
        return Ready(ready=ready, models=states)

    @app.get("/models", tags=[MODELS], summary="List the models", responses=problems())
    async def list_models() -> Models:
        return Models(models=await describe_all(models))


def _add_pipelines(app: FastAPI, previewer: Previewer, settings: ServeSettings) -> None:
    @app.get("/steps", tags=[PIPELINES], summary="List the steps of pipelines", responses=problems())
    async def list_steps() -> list[StepHelp]:
        return [step_help(cls, EXAMPLES.get(cls.name, cls.name)) for cls in ordered_steps()]

    @app.get("/pipeline", tags=[PIPELINES], summary="Check a pipeline", responses=problems())
    async def check(steps: _Steps) -> PipelineText:
        """Returns the canonical text, or a problem with `offset` and `length` of the mistake, in characters."""
        return PipelineText(ok=True, canonical=str(Pipeline.parse(steps)))

    @app.post(
        "/preview",
        tags=[PIPELINES],
        summary="Show a picture after steps",
        responses=PNG | problems(400, 408, 413, 415, 503, 504),
        response_class=Response,
        openapi_extra=pictures_body(several=False),
    )
    async def preview(request: Request, steps: _Steps) -> Response:
        """Returns a PNG; an augmentation gives one of its variants, and a picture that a selector drops is an error."""
        Pipeline.parse(steps)
        upload = await read_picture(request, settings)
        return Response(
            await await_answer(request, settings, previewer.show(upload.data, steps)), media_type="image/png"
        )


def _add_absent_models(app: FastAPI, models: Mapping[str, ModelService]) -> None:
    """Answers 404 for all other paths under /models, with the names of the models where the name is unknown."""
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
        # Browsers keep the files and revalidate them each time, so a new version shows immediately.
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await file(request, "index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return await file(request, "docs.html")

    app.get("/web/{name:path}", include_in_schema=False)(file)
