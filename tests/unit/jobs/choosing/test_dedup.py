"""Plans of `striate dedup`, what they find, and the page; the pictures are measured without Ray."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from jobs.choosing.dedup import DecisionLines, as_json, duplicates_table, find_duplicates, plan_dedup
from jobs.demo.demo import demo_pictures
from library.choosing.duplicates.fingerprints import Rule
from library.choosing.measures.picture_models import picture_model
from library.dataset.manifest import load_manifest
from library.errors import UsageError
from library.imaging import codec
from library.imaging.contact_sheet import thumbnail
from library.imaging.picture import Pixels
from tests.bundles import make_bundle
from tests.picture_examples import ingest, measure, measure_with_model, outputs_of, write_files


def tiles() -> dict[str, bytes]:
    """Four tiles of real photos that look unlike each other."""
    chosen = ("china-001", "china-020", "flower-012", "hopper-002")
    files = {Path(path).stem: data for path, data in demo_pictures() if path.startswith("photos/")}
    return {name: files[name] for name in chosen}


def jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    return codec.encode(np.ascontiguousarray(pixels), codec.Encoding("jpeg", quality))[0]


def copies() -> dict[str, bytes]:
    """Files by path: of each tile itself and a copy of another kind; one copy has another label."""
    china, river, flower, hopper = tiles().values()
    mirrored = codec.decode(hopper)[:, ::-1]
    return {
        "place/china.jpg": china,
        "place/china-again.jpg": china,
        "place/river.jpg": river,
        "place/river-small.jpg": jpeg(thumbnail(codec.decode(river), 120)),
        "place/flower.jpg": flower,
        "plant/flower-poor.jpg": jpeg(codec.decode(flower), 60),
        "person/hopper.jpg": hopper,
        "person/hopper-mirrored.jpg": jpeg(mirrored),
        "person/mirrored-lossless.png": codec.encode(codec.decode(jpeg(mirrored)), codec.Encoding("png"))[0],
    }


def dataset(folder: Path, files: dict[str, bytes]) -> str:
    manifest = ingest(write_files(folder / "files", files), folder / "data")
    measure(folder / "data", manifest, *Rule(near=4, flips=True).columns)
    return str(folder / "data")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return dataset(tmp_path_factory.mktemp("copies"), copies())


def dropped(source: str, tmp_path: Path, **options: object) -> dict[str, tuple[str, str | None]]:
    plan = plan_dedup(source, str(tmp_path / "unique"), **options)  # pyright: ignore[reportArgumentType] -- of all types
    rows = duplicates_table(plan, find_duplicates(plan)).to_pylist()
    return {Path(row["key"]).stem: (row["reason"], row["kept"]) for row in rows if row["reason"]}


def test_copies_are_found_with_reason_and_the_key_that_stays(source: str, tmp_path: Path) -> None:
    assert dropped(source, tmp_path) == {
        "china": ("exact_duplicate", "place/china-again.jpg"),
        "river-small": ("near_duplicate", "place/river.jpg"),
        "hopper-mirrored": ("same_pixels", "person/mirrored-lossless.png"),
    }
    assert dropped(source, tmp_path, near=None).keys() == {"china", "hopper-mirrored"}
    assert dropped(source, tmp_path, flips=True).keys() >= {"hopper", "hopper-mirrored"}
    assert "flower-poor" in dropped(source, tmp_path, disagreeing="best")
    assert dropped(source, tmp_path, disagreeing="drop")["flower"] == ("labels_disagree", None)


def test_embeddings_find_what_hashes_are_not_asked_for(source: str, tmp_path: Path) -> None:
    model = picture_model(make_bundle(tmp_path / "letters"), None, None, None)
    assert model is not None
    manifest = load_manifest(source)
    measure_with_model(Path(source), manifest, model)
    stored = outputs_of(Path(source), manifest, model.name, "embedding").to_pylist()
    vectors = {Path(row["key"]).stem: np.array(row["embedding"]) for row in stored}
    river, small = vectors["river"], vectors["river-small"]
    cosine = float(river @ small / np.linalg.norm(river) / np.linalg.norm(small))

    destination, report = str(tmp_path / "unique"), str(tmp_path / "page")
    plan = plan_dedup(
        source, destination, near=None, cosine=cosine - 1e-4, model=model, disagreeing="best", report=report
    )
    rows = duplicates_table(plan, find_duplicates(plan)).to_pylist()
    by_name = {Path(row["key"]).stem: row for row in rows}
    assert by_name["river-small"]["reason"] == "similar_embedding"
    kept = vectors[Path(by_name["river-small"]["kept"]).stem]
    between = float(kept @ small / np.linalg.norm(kept) / np.linalg.norm(small))
    assert by_name["river-small"]["cosine"] == pytest.approx(between, abs=1e-5)
    assert by_name["china"]["reason"] == "exact_duplicate"
    page = (tmp_path / "page" / "index.html").read_text()
    assert "dropped: similar embedding" in page
    assert f"cosine {between:.3f}" in page


def test_pictures_of_another_dataset_are_dropped_and_it_is_not_changed(source: str, tmp_path: Path) -> None:
    test_set = dataset(tmp_path, {"place/held-out.jpg": jpeg(codec.decode(tiles()["china-020"]), 70)})
    before = {path: path.read_bytes() for path in Path(test_set).rglob("*") if path.is_file()}
    found = dropped(source, tmp_path, against=test_set)
    assert {path: path.read_bytes() for path in Path(test_set).rglob("*") if path.is_file()} == before
    assert found["river"] == ("near_duplicate", "place/held-out.jpg")
    assert found["river-small"] == ("near_duplicate", "place/held-out.jpg")
    assert "held-out" not in found


def test_leaks_in_groups_whose_labels_disagree_are_counted(source: str, tmp_path: Path) -> None:
    test_set = dataset(tmp_path, {"place/held-out.jpg": jpeg(codec.decode(tiles()["flower-012"]), 70)})
    for disagreeing, dropped_of_two in (("keep", 0), ("best", 2), ("drop", 2)):
        plan = plan_dedup(source, str(tmp_path / "unique"), against=test_set, disagreeing=disagreeing)
        found = find_duplicates(plan)
        reasons = dict(zip(found.pictures["key"].to_pylist(), found.duplicates.reasons.tolist(), strict=True))
        assert sum(reasons[key] > 0 for key in ("place/flower.jpg", "plant/flower-poor.jpg")) == dropped_of_two
        assert as_json(plan, found)["leaks_kept"] == 2 - dropped_of_two
    assert "leaks_kept" not in as_json(plan_dedup(source, str(tmp_path / "unique")), found)


def test_a_dry_run_counts_and_draws_a_page_and_writes_no_dataset(source: str, tmp_path: Path) -> None:
    plan = plan_dedup(source, str(tmp_path / "unique"), report=str(tmp_path / "page"))
    found = find_duplicates(plan)
    numbers = as_json(plan, found)
    assert (numbers["pictures"], numbers["groups"], numbers["disagreeing"]) == (9, 4, 1)
    assert numbers["dropped"] == {"exact_duplicate": 1, "same_pixels": 1, "near_duplicate": 1}
    page = (tmp_path / "page" / "index.html").read_text()
    shown = re.findall(r'<span class="key">(.*?)</span>', page)
    assert {Path(key).stem for key in shown[:2]} == {"flower", "flower-poor"}  # their labels disagree
    assert len(shown) == page.count("data:image/")
    assert page.count('class="kept"') == len(shown) - 3
    assert page.count('class="gone"') == 3
    assert not (tmp_path / "unique").exists()
    plan_dedup(source, str(tmp_path / "unique"), report=str(tmp_path / "page"))  # a page of ours may be replaced


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": 13}, "--near 13: must be 0 to 12 bits"),
        ({"near": None, "flips": True}, "--flips has no effect with --no-near"),
        ({"cosine": 0.9}, "--cosine compares embeddings: name --bundle BUNDLE, or --model"),
        ({"cosine": 1.5}, "--cosine 1.5: must be above 0 and at most 1"),
        ({"disagreeing": "first"}, "--disagreeing first: choose from keep, best, drop"),
        ({"against": "{folder}"}, "is not a dataset"),
        ({"measures": "{source}/table"}, "--measures .* lies in the dataset"),
        ({"measures": "{folder}/spark"}, "--measures .* contains part-00000-5e2f.snappy.parquet, which holds no"),
        ({"report": "{source}/page"}, "is inside the dataset"),
        ({"report": "{folder}"}, "contains a page .* of something else"),
    ],
)
def test_a_request_that_cannot_work_is_refused(
    source: str, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    (tmp_path / "index.html").write_text("mine")
    (tmp_path / "spark").mkdir()
    (tmp_path / "spark" / "part-00000-5e2f.snappy.parquet").write_bytes(b"mine")
    filled = {
        name: value.format(source=source, folder=tmp_path) if isinstance(value, str) else value
        for name, value in options.items()
    }
    with pytest.raises(UsageError, match=message):
        plan_dedup(source, str(tmp_path / "unique"), **filled)  # pyright: ignore[reportArgumentType] -- of all types


def test_the_first_block_of_a_large_group_does_not_count_for_the_rate() -> None:
    lines = DecisionLines()
    lines(12_000, 60_000)  # its time is not known
    expected = "dedup: 36,000 of 60,000 pictures of large groups decided, 1,200/s, 20 s left"
    assert lines.line(36_000, 60_000, 20.0) == expected
