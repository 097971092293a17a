"""Merging datasets: columns, keys, counts, history and bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.exchange.merge import plan_merge
from jobs.filter import plan_filter
from library.dataset.manifest import Manifest, load_manifest
from library.errors import StriateError, UsageError
from tests.datasets import carry_out, rows
from tests.picture_examples import encoded, ingest, write_files


def _dataset(folder: Path, names: dict[str, bytes], table: str | None = None, *, measure: bool = False) -> str:
    source = write_files(folder / "files", names)
    if table is not None:
        (source / "metadata.csv").write_text(table)
    ingest(source, folder / "data", shard_bytes=2000, measure=measure)
    return str(folder / "data")


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    """Two datasets that have the key cat/1.png with different pictures, and columns of their own."""
    first = {f"{label}/{n}.png": encoded("png", 20 + n, 30) for label in ("cat", "dog") for n in range(4)}
    second = {f"{label}/{n}.png": encoded("png", 20 + n, 31) for label in ("cat", "owl") for n in range(3, 6)}
    table = "file_name,age,place\n" + "".join(f"{name},{n},x{n}\n" for n, name in enumerate(second))
    return _dataset(tmp_path / "one", first), _dataset(tmp_path / "two", second, table)


def _merge(sources: list[str], destination: Path, on_clash: str = "keep-first") -> Manifest:
    return carry_out(plan_merge(sources, str(destination), on_clash=on_clash))  # type: ignore[arg-type]


def test_a_merge_keeps_every_row_with_the_union_of_columns(two: tuple[str, str], tmp_path: Path) -> None:
    manifest = _merge([*two], tmp_path / "out", "prefix")
    merged = {row["key"]: row for row in rows(tmp_path / "out").to_pylist()}
    assert len(merged) == manifest.rows == 14
    for uri, name in zip(two, ("one/data/", "two/data/"), strict=True):
        for row in rows(uri).to_pylist():
            nulls = {"age": None, "place": None} if name.startswith("one") else {}
            assert merged[name + row["key"]] == row | nulls | {"key": name + row["key"]}
    assert manifest.tally.classes == {"cat": 7, "dog": 4, "owl": 3}
    assert manifest.tally.balanced


def test_clashing_keys_are_an_error_that_names_them_and_writes_nothing(two: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"1 key is .*'cat/3.png' in {two[0]} and {two[1]}; --on-clash keep-first"):
        plan_merge([*two], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_keep_first_keeps_the_picture_of_the_first_dataset(two: tuple[str, str], tmp_path: Path) -> None:
    manifest = _merge([*two], tmp_path / "out")
    assert manifest.tally.dropped == {"key_clash": 1}
    assert (manifest.tally.rows_in, manifest.rows) == (14, 13)
    one, two_rows, merged = (
        {row["key"]: row["image"] for row in rows(uri).to_pylist()} for uri in (*two, tmp_path / "out")
    )
    assert merged == two_rows | one


def test_shards_that_need_no_change_are_copied_byte_for_byte(tmp_path: Path) -> None:
    sources = [
        _dataset(tmp_path / name, {f"{name}/{n}.png": encoded("png", 20 + n, 30) for n in range(5)}, measure=True)
        for name in ("a", "b")
    ]
    manifest = _merge(sources, tmp_path / "out", "error")
    before = [load_manifest(uri) for uri in sources]
    digests = [shard.digest for one in before for shard in one.shards]
    assert len(digests) > 3
    assert [shard.digest for shard in manifest.shards] == digests
    assert manifest.histograms is not None
    assert sum(manifest.histograms["bins"]["width"]) == 10
    assert manifest.tally.image_bytes_out == sum(one.tally.image_bytes_out for one in before)


def test_merging_a_part_with_the_whole_restores_every_picture(two: tuple[str, str], tmp_path: Path) -> None:
    whole = two[0]
    part = str(tmp_path / "part")
    assert carry_out(plan_filter(whole, part, "keep_labels(['cat'])")).rows == 4
    _merge([part, whole], tmp_path / "restored")
    restored = rows(tmp_path / "restored").sort_by("key")
    assert restored.equals(rows(whole).sort_by("key"))


def test_history_has_every_source_with_its_digest_and_its_jobs(two: tuple[str, str], tmp_path: Path) -> None:
    _merge([*two], tmp_path / "out")
    again = _merge([str(tmp_path / "out"), two[1]], tmp_path / "again")
    [job] = again.jobs
    assert [origin.source for origin in job.origins] == [str(tmp_path / "out"), two[1]]
    [inner] = job.origins[0].jobs
    assert [(origin.source, origin.digest) for origin in inner.origins] == [
        (uri, load_manifest(uri).digest) for uri in two
    ]
    assert [origin.jobs[0].kind for origin in inner.origins] == ["ingest", "ingest"]


def test_columns_of_types_that_do_not_fit_are_named_with_their_datasets(tmp_path: Path) -> None:
    tables = ("file_name,age\n0.png,3\n", "file_name,age\n1.png,young\n")
    sources = [_dataset(tmp_path / str(n), {f"{n}.png": encoded("png")}, table=table) for n, table in enumerate(tables)]
    with pytest.raises(UsageError, match=rf"the column 'age' is int64 in {sources[0]}, but string in {sources[1]}"):
        plan_merge(sources, str(tmp_path / "out"))


def test_a_killed_merge_resumes_and_a_grown_source_is_merged_again(two: tuple[str, str], tmp_path: Path) -> None:
    whole = _merge([*two], tmp_path / "out")
    (tmp_path / "out" / "part-000001.parquet").unlink()
    assert _merge([*two], tmp_path / "out") == whole
    ingest(write_files(tmp_path / "more", {"ox/9.png": encoded("png")}), tmp_path / "ox")
    other = plan_merge([*two, str(tmp_path / "ox")], str(tmp_path / "new"), on_clash="keep-first")
    assert carry_out(other).rows == 14
    with pytest.raises(UsageError, match="holds the output of another job"):
        plan_merge([*two, str(tmp_path / "ox")], str(tmp_path / "out"), on_clash="keep-first")


def test_a_shard_that_was_changed_behind_the_manifest_is_refused(two: tuple[str, str], tmp_path: Path) -> None:
    shard = next(Path(two[0]).glob("part-*.parquet"))
    plan = plan_merge([two[0], _dataset(tmp_path / "x", {"x/1.png": encoded("png")})], str(tmp_path / "out"))
    other = next(path for path in Path(two[0]).glob("part-*.parquet") if path != shard)
    shard.write_bytes(other.read_bytes())
    with pytest.raises(StriateError, match=r"is damaged or was changed"):
        carry_out(plan)


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_or_repeated_datasets_are_refused(two: tuple[str, str], tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match="only one dataset" if count == 1 else "given twice"):
        plan_merge([two[0]] * count, str(tmp_path / "out"))


def test_a_last_argument_that_is_a_dataset_of_its_own_is_not_written_to(two: tuple[str, str], tmp_path: Path) -> None:
    third = _dataset(tmp_path / "three", {"cat/9.png": encoded("png", 20, 30)})
    with pytest.raises(UsageError, match=r"the last argument is the dataset to write, and .*three/data is one already"):
        plan_merge([*two], third, on_clash="keep-first")
    assert plan_merge([*two], third, on_clash="keep-first", overwrite=True).destination == third
