"""The gateway's answers: health, models, pipelines, previews, the page's files and the documentation."""

from __future__ import annotations

import asyncio
import io
import json
import re
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from library.imaging import codec
from library.pipeline import Pipeline
from library.steps import REGISTRY
from serve.gateway.preview import Previewer
from serve.gateway.routes import gateway_app
from serve.http.service import Busy, TimedOut
from serve.settings import ServeSettings
from tests.picture_examples import encoded
from tests.serving import LocalModel, Server, apps, asgi_client, problem

JPEG = encoded("jpeg", 40, 50)


def get(server: Server, path: str, **options: Any) -> httpx.Response:
    with server.client() as client:
        return client.get(path, **options)


def post(server: Server, path: str, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post(path, **body)


def ask(
    models: dict[str, LocalModel], path: str, settings: ServeSettings | None = None, **options: Any
) -> httpx.Response:
    async def play() -> httpx.Response:
        async with asgi_client(apps(models, settings or ServeSettings())) as client:
            return await client.request(options.pop("method", "GET"), path, **options)

    return asyncio.run(play())


# -- health and models ------------------------------------------------------------------------------------------------


def test_the_server_lives(server: Server) -> None:
    assert get(server, "/healthz").json() == {"status": "live"}


def test_models_describe_themselves(server: Server, models: dict[str, LocalModel]) -> None:
    listed = get(server, "/models").json()["models"]
    assert [model["name"] for model in listed] == ["colour", "grey"]
    grey = listed[1]
    assert grey == get(server, "/models/grey").json() == get(server, "/models/grey/").json()
    assert grey["bundle_id"] == models["grey"].bundle_id
    assert grey["classes"] == ["ant", "bee", "cat"]
    assert grey["input"]["size"] == [28, 28]
    assert grey["metrics"] == {"accuracy": 0.5, "loss": None}


def test_a_server_is_ready_when_all_its_models_are(models: dict[str, LocalModel]) -> None:
    response = ask(models, "/readyz")
    assert (response.status_code, response.json()["ready"]) == (200, True)
    starting = LocalModel("late", models["grey"].bundle, ServeSettings(), ready=False)
    response = ask(models | {"late": starting}, "/readyz")
    assert (response.status_code, response.json()["ready"]) == (503, False)
    assert response.json()["models"][2] == {"name": "late", "ready": False, "state": "DEPLOYING"}


def test_a_model_that_clients_do_not_reach_yet_is_not_ready(models: dict[str, LocalModel]) -> None:
    unreached = LocalModel("unreached", models["grey"].bundle, ServeSettings())
    unreached.reached = False
    for path in ("/readyz", "/v2/health/ready", "/v2/models/unreached/ready"):
        assert ask(models | {"unreached": unreached}, path).status_code == 503
    assert ask(models | {"unreached": unreached}, "/readyz").json()["models"][-1]["state"] == "STARTING"
    assert ask({"unreached": unreached}, "/models/unreached").status_code == 200, "a client that reaches it is answered"
    unreached.reached = True
    assert ask(models | {"unreached": unreached}, "/readyz").status_code == 200


def test_a_model_that_does_not_answer_is_listed_as_such(models: dict[str, LocalModel]) -> None:
    class DeadModel(LocalModel):
        async def describe(self) -> dict[str, Any]:
            raise Busy("its replica has died")

    dead = DeadModel("dead", models["grey"].bundle, ServeSettings())
    assert ask(models | {"dead": dead}, "/readyz").status_code == 503
    listed = ask(models | {"dead": dead}, "/models").json()["models"]
    assert {"name": "dead", "ready": False, "state": "UNREACHABLE"} in listed


@pytest.mark.parametrize(
    "name",
    [
        *("none", "gre", "grey2", "GREY", "grey%20", "grey;x", "a" * 3000),
        *("..", "%2e%2e", "..%2fgrey", "%2e%2e%2fgrey", "..%5c..%5cetc", "%c0%ae%c0%ae"),
        *("grey%00", "%00", "grey%2fpredict", "%ff"),
    ],
)
def test_an_unknown_model_is_404_with_the_names_of_all_models(server: Server, name: str) -> None:
    fields = "Host: localhost\r\nConnection: close\r\nContent-Length: 0"
    answer = server.raw(f"POST /models/{name}/predict HTTP/1.1\r\n{fields}\r\n\r\n".encode())
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404"), head
    answer_body = json.loads(body)
    if answer_body["type"] == "urn:striate:unknown_model":  # else the model exists, but not this path of it
        assert answer_body["models"] == ["colour", "grey"]
        assert "grey" in answer_body["how"]


@pytest.mark.parametrize(
    "path",
    [
        *("/models/grey/../colour/predict", "/models/grey/%2e%2e/colour", "/models/grey//predict"),
        *("/models/grey/nothing", "/models/grey/predict/x", "/etc/passwd"),
        *("/web/../../serve/http/keys.py", "/web/%2e%2e/settings.py", "/web//etc/passwd", "/web/docs.js%00.js"),
        *("/web/", "/web/nothing.js"),
    ],
)
def test_paths_that_lead_nowhere_are_404(server: Server, path: str) -> None:
    answer = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404"), answer
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("name", ["grey", "%67rey", "gr%65%79"])
def test_a_models_request_that_reaches_the_gateway_is_answered(
    models: dict[str, LocalModel], server: Server, name: str
) -> None:
    """Happens while the proxy does not know a model yet, or if the name is percent-encoded."""

    async def play() -> list[httpx.Response]:
        async with asgi_client(gateway_app(models, ServeSettings())) as client:
            requests = [("GET", ""), ("GET", "/"), ("POST", "/predict"), ("POST", "/view"), ("GET", "/drift")]
            answers = [await client.request(method, f"/models/{name}{path}", content=JPEG) for method, path in requests]
            return [*answers, await client.get(f"/models/{name}/nothing")]

    described, again, predicted, view, drift, nothing = asyncio.run(play())
    assert described.json() == again.json() == get(server, "/models/grey").json()
    assert predicted.json()["predictions"] == post(server, "/models/grey/predict", content=JPEG).json()["predictions"]
    assert predicted.json()["bundle_id"] == models["grey"].bundle_id
    assert view.content == post(server, "/models/grey/view", content=JPEG).content
    problem(drift, 404, "drift_off")
    problem(nothing, 404, "not_found")


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/models", "/models/grey", "/steps", "/docs", "/v2"])
def test_every_get_route_answers_head(server: Server, path: str) -> None:
    with server.client() as client:
        read, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == read.headers["content-type"]
    assert head.headers["content-length"] == read.headers["content-length"]


def test_head_of_an_unknown_path_is_404_and_of_a_post_route_405(server: Server) -> None:
    with server.client() as client:
        assert client.head("/models/none").status_code == 404
        assert client.head("/models/grey/predict").status_code == 405


def test_a_wrong_method_is_405_and_says_the_right_one(server: Server) -> None:
    response = get(server, "/models/grey/predict")
    assert "POST" in problem(response, 405, "method")["how"]
    assert response.headers["allow"] == "POST"


def test_drift_is_reported_where_it_is_measured(server: Server) -> None:
    report = get(server, "/models/colour/drift").json()
    assert (report["verdict"], report["thresholds"]) == ("too_few", {"shifted": 0.1, "drifted": 0.25})
    assert set(report) == {"verdict", "thresholds", "measures", "no_reference", "edges", "reference", "live"}
    assert "drift" not in get(server, "/models/colour").json()
    problem(get(server, "/models/grey/drift"), 404, "drift_off")


@pytest.mark.parametrize(
    ("error", "status", "slug"),
    [
        (Busy("full", 7), 503, "busy"),
        (Busy("slowly", 7, 429), 429, "too_many_requests"),
        (TimedOut("too long"), 504, "timed_out"),
        (ValueError("secret /home/x"), 500, "internal"),
    ],
)
def test_a_models_failure_is_reported_without_details(
    models: dict[str, LocalModel], error: Exception, status: int, slug: str
) -> None:
    failing = LocalModel("failing", models["grey"].bundle, ServeSettings())
    failing.failing = error
    for path in ("/models/failing/predict", "/v2/models/failing/infer"):
        data = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [""]}]}
        body = {"json": data} if path.startswith("/v2") else {"content": JPEG}
        response = ask({"failing": failing}, path, method="POST", **body)
        problem(response, status, slug)
        assert "secret" not in response.text
        assert (response.headers.get("retry-after") == "7") == (status in (429, 503))
        assert response.headers["x-content-type-options"] == "nosniff"


def test_what_could_steer_a_terminal_is_written_out(server: Server) -> None:
    response = get(server, "/models/%1b[31mred%c2%9b31m%e2%80%ae")
    assert "\x1b[31mred" in problem(response, 404, "unknown_model")["detail"]
    assert not {"\x1b", "\x9b", "\u202e"} & set(response.text)


# -- pipelines --------------------------------------------------------------------------------------------------------


def test_all_steps_are_listed_with_their_parameters(server: Server) -> None:
    listed = {step["name"]: step for step in get(server, "/steps").json()}
    assert sorted(listed) == sorted(REGISTRY)
    blur = listed["gaussian_blur"]
    assert blur["kind"] == "filter"
    assert [parameter["name"] for parameter in blur["parameters"]] == ["sigma", "border"]
    assert blur["parameters"][0]["required"]
    for step in listed.values():
        assert Pipeline.parse(step["example"]).steps[0].name == step["name"]


def test_a_pipeline_is_checked_and_its_mistake_has_a_place(server: Server) -> None:
    good = get(server, "/pipeline", params={"steps": "grayscale | gaussian_blur(1.5)"}).json()
    assert good["ok"]
    assert good["canonical"] == str(Pipeline.parse("grayscale | gaussian_blur(1.5)"))
    answer_body = problem(get(server, "/pipeline", params={"steps": "grayscale | gausian_blur(1.5)"}), 422, "grammar")
    assert (answer_body["offset"], answer_body["length"]) == (12, 12)
    assert "did you mean 'gaussian_blur'" in answer_body["detail"]
    problem(get(server, "/pipeline", params={"steps": " "}), 422, "grammar")
    problem(get(server, "/pipeline"), 422, "invalid")


def test_a_preview_is_the_picture_after_the_steps(server: Server) -> None:
    response = post(server, "/preview", params={"steps": "grayscale | resize([10, 20], mode='exact')"}, content=JPEG)
    assert response.headers["content-type"] == "image/png"
    shown = np.asarray(Image.open(io.BytesIO(response.content)))
    expected = Pipeline.parse("grayscale | resize([10, 20], mode='exact')").apply(codec.decode(JPEG))
    assert np.array_equal(shown, np.repeat(expected, 3, 2))


def test_a_preview_of_an_augmentation_is_one_variant(server: Server) -> None:
    first, again = (post(server, "/preview?steps=rotate(40)", content=JPEG) for _ in range(2))
    assert first.content == again.content
    assert first.status_code == 200


@pytest.mark.parametrize(
    ("steps", "status", "slug", "part"),
    [
        ("min_size(short_side=100)", 422, "dropped", "min_size"),
        ("gausian_blur(1)", 422, "grammar", "gaussian_blur"),
        ("resize(9000)", 413, "too_large", "resize"),
        ("center_crop(1000)", 422, "too_small", "1000"),
        ('score_at_least("cat", 0.5)', 422, "step_failed", "column"),
        ("grayscale | hue(0.1)", 422, "wrong_channels", "rgb"),
    ],
)
def test_a_preview_that_is_not_possible_says_why(server: Server, steps: str, status: int, slug: str, part: str) -> None:
    answer_body = problem(post(server, "/preview", params={"steps": steps}, content=JPEG), status, slug)
    assert part in answer_body["detail"]


def test_a_preview_that_takes_too_long_is_ended_and_the_next_one_works() -> None:
    async def play() -> None:
        previewer = Previewer(ServeSettings(timeout_s=0.5))
        with pytest.raises(TimedOut, match=r"0\.5 s"):
            await previewer.show(JPEG, "resize([6000, 6000], mode='exact') | denoise | denoise")
        assert (await previewer.show(JPEG, "grayscale")).startswith(b"\x89PNG")
        previewer.close()

    asyncio.run(play())


# -- the page and the documentation -----------------------------------------------------------------------------------


def test_the_page_and_everything_that_it_loads_are_served(server: Server) -> None:
    page = get(server, "/")
    assert page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    assert names
    for name in names:
        assert get(server, f"/{name}").status_code == 200, name


def test_files_of_the_page_are_kept_by_browsers_and_asked_for_again(server: Server) -> None:
    response = get(server, "/web/style.css")
    assert response.headers["cache-control"] == "no-cache"
    again = get(server, "/web/style.css", headers={"If-None-Match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_documentation_needs_nothing_from_outside(server: Server) -> None:
    page = get(server, "/docs").text
    assert "<script>" not in page
    assert "style=" not in page
    links = re.findall(r'(?:src|href)="([^"#]+)"', page)
    assert {"web/swagger-ui-bundle.js", "web/swagger-ui.css"} <= set(links)
    for link in links:
        assert "//" not in link
        assert get(server, f"/{link}").status_code == 200


def test_the_description_has_bodies_errors_tags_and_key_requirements(models: dict[str, LocalModel]) -> None:
    description = ask(models, "/openapi.json").json()
    operations = [operation for path in description["paths"].values() for operation in path.values()]
    assert all(len(operation["tags"]) == 1 for operation in operations)
    predict = description["paths"]["/models/{name}/predict"]["post"]
    assert {"image/*", "application/json", "multipart/form-data"} <= set(predict["requestBody"]["content"])
    assert {"400", "401", "404", "408", "413", "415", "422", "429", "503", "504"} <= set(predict["responses"])
    names = set(description["components"]["schemas"])
    assert set(re.findall(r"#/components/schemas/(\w+)", json.dumps(description))) <= names
    assert not [operation for operation in operations if operation.get("security")]
    key = "a sha256:" + "0" * 64
    description = asyncio.run(_description_with_key(models, ServeSettings(keys=(key,))))
    # A global "security" would show a lock at /healthz too.
    assert "security" not in description
    assert description["paths"]["/models"]["get"]["security"] == [{"key": []}]
    assert description["paths"]["/healthz"]["get"]["security"] == []


async def _description_with_key(models: dict[str, LocalModel], settings: ServeSettings) -> dict[str, Any]:
    return gateway_app(models, settings).openapi()


# -- what every answer carries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", "/healthz", "/docs", "/models", "/nothing", "/models/grey", "/models/none", "/v2"]
)
def test_every_answer_carries_security_headers(server: Server, path: str) -> None:
    headers = get(server, path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in headers["permissions-policy"]
    assert headers["cache-control"] in ("no-store", "no-cache")
    assert "x-request-id" not in headers  # Ray Serve adds it
    assert "access-control-allow-origin" not in headers


def test_other_origins_may_call_only_where_they_are_named(models: dict[str, LocalModel]) -> None:
    settings = ServeSettings(cors_origins=("https://ok.example",), keys=("a sha256:" + "0" * 64,))
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://ok.example", "https://ok.example"), ("https://evil.example", None)):
        for path in ("/models", "/models/grey/predict"):
            preflight_response = ask(models, path, settings, method="OPTIONS", headers={"Origin": origin, **preflight})
            assert preflight_response.headers.get("access-control-allow-origin") == allowed
            assert (preflight_response.status_code == 200) == (allowed is not None)
            refused = ask(models, path, settings, headers={"Origin": origin})
            assert refused.status_code == 401
            assert refused.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize("origin", ["*", "example.org", "https://a.example/", "https://a.example/x", "ftp://a", "null"])
def test_an_origin_that_is_not_valid_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="not a valid origin"):
        ServeSettings(cors_origins=(origin,))


def test_settings_go_through_json_and_refuse_what_they_do_not_know() -> None:
    settings = ServeSettings(max_files=3, keys=("a sha256:" + "0" * 64,), cors_origins=("https://a.example",))
    assert ServeSettings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValueError, match="max_file"):
        ServeSettings.model_validate({"max_file": 3})
