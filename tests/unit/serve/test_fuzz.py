"""Schemathesis generates requests from the API's description: none makes it fail, and all answers conform to it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import schemathesis
from hypothesis import settings
from hypothesis import strategies as st
from schemathesis import checks

from library.steps.examples import EXAMPLES
from serve.gateway.routes import gateway_app
from serve.http.model_routes import model_app
from serve.settings import ServeSettings
from tests.picture_examples import kinds
from tests.serving import Server

#: Bodies of binary types: pictures, and bytes that are not pictures.
_PICTURES = st.sampled_from(list(kinds().values())) | st.binary(max_size=200)
for _type in ("image/*", "application/octet-stream"):
    schemathesis.openapi.media_type(_type, _PICTURES)

_CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
_BOUNDED = settings(max_examples=25, deadline=None, derandomize=True, database=None)


def gateway_description() -> dict[str, Any]:
    """The description of the gateway, which includes the models."""
    described = gateway_app({}, ServeSettings()).openapi()
    for operations in described["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "name":  # else nearly all requests would name unknown models
                    parameter["schema"]["enum"] = ["grey", "colour", "none"]
                if parameter["name"] == "steps":  # else no request would contain a valid pipeline
                    parameter["schema"]["enum"] = [*EXAMPLES.values(), "| grayscale", "gausian_blur(1)"]
    return described


def model_description() -> dict[str, Any]:
    """The description of a model's own application."""
    return model_app(cast(Any, SimpleNamespace(name="colour")), ServeSettings()).openapi()


@schemathesis.openapi.from_dict(gateway_description()).parametrize()
@_BOUNDED
def test_the_gateway_and_its_models_hold_to_their_description(case: schemathesis.Case, server: Server) -> None:
    case.call_and_validate(base_url=server.url, checks=_CHECKS)


@schemathesis.openapi.from_dict(model_description()).parametrize()
@_BOUNDED
def test_a_models_own_application_holds_to_its_description(case: schemathesis.Case, server: Server) -> None:
    case.call_and_validate(base_url=f"{server.url}/models/colour", checks=_CHECKS)
