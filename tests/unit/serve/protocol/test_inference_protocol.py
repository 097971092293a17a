"""Tests the Open Inference Protocol v2 with Triton's own client, and with raw requests that the client cannot send."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from library.bundle.bundle import Bundle
from serve.http.keys import new_key
from serve.settings import ServeSettings
from tests.bundles import PROBABILITY_TOLERANCE, near
from tests.picture_examples import encoded, scene
from tests.serving import LocalModel, Server, apps, problem

PICTURES = [encoded("jpeg", 40, 50), encoded("png", 30, 20), encoded("webp", 33, 44)]


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as opened:
        yield opened


def expected(bundle: Bundle, pictures: list[bytes]) -> NDArray[np.float32]:
    return np.concatenate([bundle.probabilities([bundle.prepare(picture)]) for picture in pictures])


def images(pictures: list[bytes], *, binary: bool = True) -> Any:
    """An `image` input with these files."""
    tensor = triton.InferInput("image", [len(pictures)], "BYTES")
    elements = pictures if binary else [base64.b64encode(picture) for picture in pictures]
    tensor.set_data_from_numpy(np.array(elements, object), binary_data=binary)
    return tensor


# -- with tritonclient ------------------------------------------------------------------------------------------------


def test_the_server_and_its_models_are_live_and_ready(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("grey")
    assert client.is_model_ready("grey", "1")
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("grey", "2")


def test_metadata_describes_the_inputs_and_outputs(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata()["name"] == "striate"
    metadata = client.get_model_metadata("colour")
    assert metadata == client.get_model_metadata("colour", "1")
    assert [tensor["name"] for tensor in metadata["inputs"]] == ["image", "pixels"]
    assert metadata["outputs"][0] == {"name": "probabilities", "datatype": "FP32", "shape": [-1, 7]}


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("version", ["", "1"])
def test_pictures_get_the_bundles_own_probabilities(
    client: triton.InferenceServerClient,
    models: dict[str, LocalModel],
    binary_in: bool,
    binary_out: bool | None,
    version: str,
) -> None:
    outputs = None
    if binary_out is not None:
        outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]
    tensor = images(PICTURES, binary=binary_in)
    result = client.infer("colour", [tensor], model_version=version, outputs=outputs, request_id="r1")
    expected_rows = expected(models["colour"].bundle, PICTURES)
    probabilities = result.as_numpy("probabilities")
    assert probabilities is not None
    np.testing.assert_allclose(probabilities, expected_rows, rtol=0, atol=PROBABILITY_TOLERANCE)
    assert probabilities.shape == (3, 7)
    labels = [text if isinstance(text, str) else text.decode() for text in result.as_numpy("label")]
    assert labels == [models["colour"].bundle.classes[i] for i in expected_rows.argmax(1)]
    answer = result.get_response()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("r1", "colour", "1")


@pytest.mark.parametrize("binary", [True, False])
def test_pixels_get_what_the_same_picture_gets(
    client: triton.InferenceServerClient, models: dict[str, LocalModel], binary: bool
) -> None:
    pixels = np.stack([scene(40, 50), scene(40, 50)[::-1]])
    tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels, binary_data=binary)
    probabilities = client.infer("colour", [tensor]).as_numpy("probabilities")
    bundle = models["colour"].bundle
    expected_rows = np.concatenate([bundle.probabilities([bundle.prepare_pixels(one)]) for one in pixels])
    np.testing.assert_allclose(probabilities, expected_rows, rtol=0, atol=PROBABILITY_TOLERANCE)


def test_classification_gives_the_best_classes_as_text(
    client: triton.InferenceServerClient, models: dict[str, LocalModel]
) -> None:
    output = triton.InferRequestedOutput("probabilities", binary_data=True, class_count=2)
    probabilities = client.infer("grey", [images(PICTURES[:1])], outputs=[output]).as_numpy("probabilities")
    bundle = models["grey"].bundle
    assert probabilities.shape == (1, 2)
    answers = [text.decode().split(":") for text in probabilities[0]]
    assert [(name, float(share)) for share, _, name in answers] == near(bundle.predict(PICTURES[0], 2).classes)
    assert [int(number) for _, number, _ in answers] == [bundle.classes.index(name) for _, _, name in answers]


def test_errors_reach_the_client_as_sentences(client: triton.InferenceServerClient) -> None:
    for model, tensor, part, status in (
        ("none", images(PICTURES), "no model 'none'", "404"),
        ("grey", images([PICTURES[0], b"hello"]), "picture 1: starts with", "400"),
        ("grey", images([encoded("png", 2, 2)]), "min_size", "422"),
    ):
        with pytest.raises(InferenceServerException) as raised:
            client.infer(model, [tensor])
        assert part in raised.value.message()
        assert raised.value.status() == status
    with pytest.raises(InferenceServerException, match=r"no parameter|no such"):
        client.infer("grey", [images(PICTURES)], priority=1)


def test_a_key_goes_along_as_a_header(models: dict[str, LocalModel]) -> None:
    key, line = new_key("ann")
    with (
        Server(apps(models, ServeSettings(keys=(line,)))) as server,
        triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client,
    ):
        with pytest.raises(InferenceServerException, match="API key"):
            client.infer("grey", [images(PICTURES)])
        headers = {"Authorization": f"Bearer {key}"}
        assert client.infer("grey", [images(PICTURES)], headers=headers).as_numpy("label").shape == (3,)


# -- raw requests ----------------------------------------------------------------------------------------------------

TEXT = base64.b64encode(PICTURES[0]).decode()
IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [TEXT]}
PIXELS = {"name": "pixels", "shape": [1, 4, 4, 1], "datatype": "UINT8", "data": [0] * 16}


def infer(server: Server, **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/v2/models/grey/infer", **body)


@pytest.mark.parametrize(
    "tensor",
    [
        IMAGE,
        IMAGE | {"shape": [1, 1], "data": [[TEXT]]},
        PIXELS,
        PIXELS | {"data": [[[[0]] * 4] * 4]},
        PIXELS | {"shape": [2, 4, 4, 3], "data": [7] * 96},
    ],
)
def test_json_may_be_flat_or_nested(server: Server, tensor: dict[str, Any]) -> None:
    response = infer(server, json={"inputs": [tensor]})
    assert response.status_code == 200, response.text
    outputs = response.json()["outputs"]
    assert outputs[0]["shape"] == [tensor["shape"][0], 3]
    assert len(outputs[0]["data"]) == 3 * tensor["shape"][0]
    assert "id" not in response.json()


@pytest.mark.parametrize(
    ("request_", "status", "part"),
    [
        ({}, 422, "inputs"),
        ({"inputs": []}, 422, "inputs"),
        ({"inputs": [IMAGE, PIXELS]}, 422, "inputs"),
        ({"inputs": [IMAGE | {"name": "input_1"}]}, 422, "'image' or 'pixels'"),
        ({"inputs": [IMAGE | {"datatype": "FP32"}]}, 422, "datatype"),
        ({"inputs": [IMAGE | {"datatype": "UINT8"}]}, 422, "should be BYTES"),
        ({"inputs": [IMAGE | {"shape": []}]}, 422, "shape"),
        ({"inputs": [IMAGE | {"shape": [2]}]}, 422, "2 elements"),
        ({"inputs": [IMAGE | {"shape": [-1]}]}, 422, "shape"),
        ({"inputs": [IMAGE | {"shape": [0], "data": []}]}, 422, "shape"),
        ({"inputs": [IMAGE | {"shape": [1, 2]}]}, 422, "should be BYTES"),
        ({"inputs": [IMAGE | {"shape": [10**30]}]}, 413, "the limit is 64"),
        ({"inputs": [IMAGE | {"shape": [65], "data": [TEXT] * 65}]}, 413, "the limit is 64"),
        ({"inputs": [IMAGE | {"data": ["@"]}]}, 422, "inputs.0.data.0"),
        ({"inputs": [IMAGE | {"data": [3]}]}, 422, "inputs.0.data.0"),
        ({"inputs": [IMAGE | {"data": [None]}]}, 422, "inputs.0.data.0"),
        ({"inputs": [IMAGE | {"data": [{}]}]}, 422, "inputs.0.data.0"),
        ({"inputs": [IMAGE | {"data": [[TEXT], TEXT]}]}, 422, "mixes lists and values"),
        ({"inputs": [{name: IMAGE[name] for name in ("name", "shape", "datatype")}]}, 422, "either data or"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 3}}]}, 422, "either data or"),
        ({"inputs": [PIXELS | {"shape": [1, 4, 4]}]}, 422, "should be UINT8"),
        ({"inputs": [PIXELS | {"data": [0] * 15}]}, 422, "16 elements"),
        ({"inputs": [PIXELS | {"data": [256] * 16}]}, 422, "0 to 255"),
        ({"inputs": [PIXELS | {"data": [0] * 2**21}]}, 413, "more than 1,048,576 values"),
        ({"inputs": [PIXELS | {"data": [[]] * 2**20}]}, 413, "more than 1,048,576 values"),
        ({"inputs": [PIXELS | {"data": [0.5] * 16}]}, 422, "0 to 255"),
        ({"inputs": [PIXELS | {"data": [True] * 16}]}, 422, "0 to 255"),
        ({"inputs": [PIXELS | {"shape": [1, 60000, 60000, 3]}]}, 413, "60000x60000"),
        ({"inputs": [IMAGE], "outputs": [{"name": "logits"}]}, 422, "'probabilities' or 'label'"),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "label", "parameters": {"classification": 2}}]},
            422,
            "classification",
        ),
        ({"inputs": [IMAGE], "parameters": {"sequence_id": 1}}, 422, "sequence_id"),
        ({"inputs": [IMAGE], "timeout": 3}, 422, "timeout"),
    ],
)
def test_a_wrong_request_gets_an_error_that_says_what_is_wrong(
    server: Server, request_: Any, status: int, part: str
) -> None:
    response = infer(server, json=request_)
    refusal = response.json()
    assert response.status_code == status, refusal
    assert part in refusal["detail"], refusal
    assert refusal["error"] == refusal["detail"]


def element(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


BINARY = {"name": "image", "shape": [1], "datatype": "BYTES"}


@pytest.mark.parametrize(
    ("behind", "size", "status"),
    [
        (element(PICTURES[0]), None, 200),
        (element(PICTURES[0])[:-1], None, 400),
        (element(PICTURES[0]) + b"x", None, 400),
        (b"\xff\xff\xff\xffabc", None, 400),
        (b"", None, 400),
        (b"abc", None, 400),
        (element(PICTURES[0]), 5, 400),
        (element(PICTURES[0]), 10**30, 400),
        (element(PICTURES[0]), -1, 422),
    ],
)
def test_bytes_behind_the_json_are_exactly_what_it_says(
    server: Server, behind: bytes, size: int | None, status: int
) -> None:
    parameters = {"binary_data_size": len(behind) if size is None else size}
    header = httpx.Request("POST", "http://x", json={"inputs": [BINARY | {"parameters": parameters}]}).content
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    assert infer(server, content=header + behind, headers=headers).status_code == status


@pytest.mark.parametrize("length", ["", "x", "-1", "99999999", "1e3", "٣", "1" * 5000])
def test_a_wrong_length_of_the_json_is_reported(server: Server, length: str) -> None:
    headers = {b"Inference-Header-Content-Length": length.encode(), b"Content-Type": b"application/octet-stream"}
    problem(infer(server, content=b"{}", headers=headers), 400, "malformed")


def test_other_content_types_are_415(server: Server) -> None:
    problem(infer(server, content=b"{}", headers={"Content-Type": "image/jpeg"}), 415, "media_type")
