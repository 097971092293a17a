"""POST /models/NAME/predict: bodies of every kind, their answers, and the errors of client and server."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.bundles import near
from tests.picture_examples import encoded, kinds, scene
from tests.serving import LocalModel, Server, problem

JPEG = encoded("jpeg", 40, 50)
PNG = encoded("png", 30, 20)


def post(server: Server, path: str = "/models/grey/predict", **body: Any) -> httpx.Response:
    with server.client() as client:
        return client.post(path, **body)


def pairs(answer: dict[str, Any]) -> list[tuple[str, float]]:
    return [(one["class"], one["probability"]) for one in answer["classes"]]


@pytest.mark.parametrize(
    "kind",
    [
        "image/jpeg",
        "image/png",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "IMAGE/x-odd; a=b",
        None,
    ],
)
def test_a_raw_body_is_a_picture_whatever_its_type_says(
    server: Server, models: dict[str, LocalModel], kind: str | None
) -> None:
    response = post(server, content=JPEG, headers={"Content-Type": kind} if kind else {})
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer["model"] == "grey"
    assert answer["bundle_id"] == models["grey"].bundle_id
    assert answer["timing"] == {"decode_ms": 1.0, "queue_ms": 0.0, "infer_ms": 2.0, "total_ms": 3.0}
    assert len(answer["predictions"]) == 1
    only = answer["predictions"][0]
    assert only["file"] is None
    assert (only["width"], only["height"]) == (50, 40)
    assert pairs(only) == near(models["grey"].bundle.predict(JPEG).classes)


def test_the_probabilities_are_those_of_the_bundle(server: Server, models: dict[str, LocalModel]) -> None:
    bundle = models["colour"].bundle
    answer = post(server, "/models/colour/predict?top_k=7", content=JPEG).json()["predictions"][0]
    assert pairs(answer) == near(bundle.predict(JPEG, 7).classes)


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_picture_gets_classes_or_a_reason(server: Server, kind: str) -> None:
    response = post(server, content=kinds()[kind])
    assert response.status_code in (200, 422), response.text


def test_a_form_with_several_files_is_answered_in_their_order(server: Server, models: dict[str, LocalModel]) -> None:
    files = [("file", ("a.jpg", JPEG)), ("file", ("é☃.png", PNG)), ("file", ("c.jpg", JPEG))]
    answer = post(server, "/models/grey/predict?top_k=1", files=files).json()
    assert [one["file"] for one in answer["predictions"]] == ["a.jpg", "é☃.png", "c.jpg"]
    assert pairs(answer["predictions"][1]) == near(models["grey"].bundle.predict(PNG, 1).classes)
    assert answer["predictions"][0]["classes"] == answer["predictions"][2]["classes"]


def test_json_with_base64_is_answered(server: Server, models: dict[str, LocalModel]) -> None:
    text = base64.b64encode(JPEG).decode()
    answer = post(server, json={"pictures": [{"base64": text, "name": "x"}, {"base64": text}]}).json()
    assert [one["file"] for one in answer["predictions"]] == ["x", None]
    assert pairs(answer["predictions"][1]) == near(models["grey"].bundle.predict(JPEG).classes)


def test_a_bad_picture_among_several_fails_no_other(server: Server) -> None:
    files = [
        ("file", ("good.jpg", JPEG)),
        ("file", ("bad.png", PNG[:-40])),
        ("file", ("tiny.png", encoded("png", 2, 2))),
    ]
    response = post(server, files=files)
    assert response.status_code == 200
    good, bad, tiny = response.json()["predictions"]
    assert "error" not in good
    assert "classes" not in bad
    assert (bad["error"]["status"], bad["error"]["reason"]) == (400, "truncated")
    assert (tiny["error"]["status"], tiny["error"]["reason"]) == (422, "dropped:below_min_size")


@pytest.mark.parametrize("single", ["raw", "form", "json"])
def test_the_error_of_a_single_picture_is_the_status(server: Server, single: str) -> None:
    body: dict[str, Any] = {
        "raw": {"content": b"hello"},
        "form": {"files": {"file": b"hello"}},
        "json": {"json": {"pictures": [{"base64": base64.b64encode(b"hello").decode()}]}},
    }[single]
    refusal = problem(post(server, **body), 400, "not_an_image")
    assert refusal["reason"] == "not_an_image"
    assert "JPEG" in refusal["how"]


def test_a_picture_that_the_models_selector_drops_is_422_with_a_reason(server: Server) -> None:
    body = problem(post(server, content=encoded("png", 3, 9)), 422, "dropped")
    assert body["reason"] == "dropped:below_min_size"
    assert "min_size" in body["detail"]


def test_top_k_cuts_the_answer_and_more_than_there_are_gives_all(server: Server) -> None:
    assert len(post(server, "/models/colour/predict", content=JPEG).json()["predictions"][0]["classes"]) == 5
    for top_k, number in ((1, 1), (3, 3), (100, 7)):
        answer = post(server, f"/models/colour/predict?top_k={top_k}", content=JPEG).json()["predictions"][0]
        assert len(answer["classes"]) == number
        assert [p for _, p in pairs(answer)] == sorted((p for _, p in pairs(answer)), reverse=True)


def test_an_explanation_is_refused_for_a_model_that_has_none(server: Server) -> None:
    answer = post(server, "/models/colour/predict?explain=true", content=JPEG).json()["predictions"][0]
    assert base64.b64decode(answer["explanation"]).startswith(b"\x89PNG")
    problem(post(server, "/models/grey/predict?explain=true", content=JPEG), 422, "no_explanation")


def test_a_look_inside_is_a_png_or_says_what_would_work(server: Server) -> None:
    answer = post(server, "/models/colour/inside?part=maps", content=JPEG)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    problem(post(server, "/models/grey/inside?part=maps", content=JPEG), 422, "no_explanation")
    problem(post(server, "/models/colour/inside?part=maps&class=a", content=JPEG), 422, "parameter")
    for query in ("", "?part=heart", "?part=maps&part=fields"):
        assert post(server, f"/models/colour/inside{query}", content=JPEG).status_code == 422
    problem(post(server, "/models/colour/inside?part=fields", content=b"hello"), 400, "not_an_image")


@pytest.mark.parametrize(
    ("query", "part"),
    [
        ("top_k=0", "top_k"),
        ("top_k=x", "top_k"),
        ("top_k=3.5", "top_k"),
        ("explain=7", "explain"),
        ("topk=3", "'topk' is not a parameter of this route"),
        ("key=secret", "key"),
        ("top_k=1&top_k=2", "occurs twice"),
    ],
)
def test_a_wrong_parameter_is_named(server: Server, query: str, part: str) -> None:
    response = post(server, f"/models/grey/predict?{query}", content=JPEG)
    assert response.status_code == 422
    assert part in response.json()["detail"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "video/mp4", "multipart/mixed; boundary=x", "nonsense"]
)
def test_other_types_are_415(server: Server, kind: str) -> None:
    assert (
        "multipart/form-data"
        in problem(post(server, content=JPEG, headers={"Content-Type": kind}), 415, "media_type")["how"]
    )


def test_a_compressed_body_is_415(server: Server) -> None:
    problem(post(server, content=JPEG, headers={"Content-Encoding": "gzip"}), 415, "content_encoding")


@pytest.mark.parametrize(
    ("body", "status", "slug", "part"),
    [
        (b"{", 400, "malformed", "JSON"),
        (b"\xff\xfe", 400, "malformed", "JSON"),
        (b"[" * 5_000, 400, "malformed", "JSON"),
        (b"[]", 422, "invalid", "object"),
        (b"{}", 422, "invalid", "pictures"),
        (b'{"pictures": []}', 422, "invalid", "pictures"),
        (b'{"pictures": [{}]}', 422, "invalid", "pictures.0.base64"),
        (b'{"pictures": [{"base64": "@@"}]}', 422, "base64", "pictures.0.base64"),
        (b'{"pictures": [{"base64": "aGk=\\n"}]}', 422, "base64", "pictures.0.base64"),
        ('{"pictures": [{"base64": "é"}]}'.encode(), 422, "base64", "pictures.0.base64"),
        (b'{"pictures": [{"base64": "data:image/png;base64,aGk="}]}', 422, "base64", "pictures.0.base64"),
        (b'{"pictures": [{"base64": ""}]}', 400, "empty", "no bytes"),
        (b'{"pictures": [{"base64": "aGk=", "label": "cat"}]}', 422, "invalid", "pictures.0.label"),
        (b'{"pictures": [{"base64": "aGk="}], "top_k": 3}', 422, "invalid", "top_k"),
    ],
)
def test_wrong_json_gets_an_error_with_its_place(
    server: Server, body: bytes, status: int, slug: str, part: str
) -> None:
    response = post(server, content=body, headers={"Content-Type": "application/json"})
    assert part in problem(response, status, slug)["detail"]


def form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="file"; filename="a.jpg"\r\n\r\n'


TYPE = "multipart/form-data; boundary=B"
LONG = b'Content-Disposition: form-data; name="' + b"x" * 9000 + b'"\r\n\r\n3'


@pytest.mark.parametrize(
    ("body", "kind", "status", "slug"),
    [
        (form(FILE + JPEG), TYPE, 200, ""),
        (form(FILE + JPEG), 'multipart/form-data; charset=utf-8; boundary="B"', 200, ""),
        (form(FILE + JPEG), 'multipart/form-data; charset=idna; boundary="B"', 415, "media_type"),
        (form(FILE + JPEG), "multipart/form-data", 400, "malformed"),
        (form(FILE + JPEG), "multipart/form-data; boundary=C", 400, "malformed"),
        (form(FILE + JPEG), f"multipart/form-data; boundary={'x' * 500}", 400, "malformed"),
        (form(FILE + JPEG, end=b""), TYPE, 400, "malformed"),
        (form(FILE + JPEG)[:-100], TYPE, 400, "malformed"),
        (b"", TYPE, 400, "malformed"),
        (form(), TYPE, 422, "no_picture"),
        (form(b'Content-Disposition: form-data; name="top_k"\r\n\r\n3'), TYPE, 422, "field"),
        (form(FILE.replace(b'; filename="a.jpg"', b"") + JPEG), TYPE, 422, "field"),
        (form(b"\r\n" + JPEG), TYPE, 400, "malformed"),
        (form(LONG), TYPE, 400, "malformed"),
        (form(b"Content-Transfer-Encoding: base64\r\n" + FILE + b"aGk="), TYPE, 415, "content_encoding"),
    ],
)
def test_wrong_forms_get_an_error(server: Server, body: bytes, kind: str, status: int, slug: str) -> None:
    response = post(server, content=body, headers={"Content-Type": kind})
    if status == 200:
        assert response.status_code == 200, response.text
    else:
        problem(response, status, slug)


def test_a_large_file_of_a_form_is_kept_in_memory_and_off_the_disk(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no such folder"))
    assert post(server, files={"file": JPEG + bytes(3 * 2**20)}).status_code == 200


def test_more_files_than_may_be_are_413(server: Server) -> None:
    small = encoded("png", 8, 8)
    assert post(server, files=[("file", small)] * 64).status_code == 200
    problem(post(server, files=[("file", small)] * 65), 413, "too_many_files")
    text = base64.b64encode(small).decode()
    problem(post(server, json={"pictures": [{"base64": text}] * 65}), 413, "too_many_files")


def test_view_gives_what_the_model_sees_as_png(server: Server) -> None:
    response = post(server, "/models/grey/view", content=JPEG)
    assert response.headers["content-type"] == "image/png"
    assert response.content.startswith(b"\x89PNG")
    problem(post(server, "/models/grey/view", files=[("file", JPEG)] * 2), 422, "one_picture")
    problem(post(server, "/models/grey/view", content=b"no"), 400, "not_an_image")


def test_pixels_of_the_example_are_not_all_alike() -> None:
    """Otherwise the parity tests above would prove nothing."""
    assert scene().std() > 10
