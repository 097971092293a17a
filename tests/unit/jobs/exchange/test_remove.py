"""Removing pictures in place: what changes, what stays, and what a kill leaves."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.exchange.merge import plan_merge
from jobs.exchange.remove import (
    RemovePlan,
    commit_stage,
    find_affected,
    finish_removal,
    plan_remove,
    remove_pictures,
)
from jobs.filter import plan_filter
from jobs.shards.dataset_job import ShardPlan
from library import storage
from library.bundle.bundle import Bundle
from library.bundle.description import load_record
from library.dataset.destination import check_unchanged, claim
from library.dataset.manifest import Manifest, find_manifest, load_manifest
from library.errors import StriateError, UsageError
from library.exchange import removal
from library.exchange.removal import STAGE, read_keys
from library.work.remove_shard import RemoveJob, removal_task
from tests.bundles import make_bundle
from tests.datasets import carry_out, content, rows
from tests.exports import convert
from tests.picture_examples import encoded, ingest, write_files


def _dataset(folder: Path, *, measure: bool = False) -> str:
    """Twelve pictures of two classes in several shards, and two rejects."""
    pictures = {f"{label}/{n}.png": encoded("png", 20 + n, 30) for label in ("cat", "dog") for n in range(6)}
    damaged = {f"cat/bad{n}.jpg": encoded("jpeg")[:200] for n in range(2)}
    ingest(write_files(folder / "files", pictures | damaged), folder / "raw", shard_bytes=1200, measure=measure)
    return str(folder / "raw")


def _stage(plan: RemovePlan) -> Manifest:
    """Writes the new versions of the shards without Ray."""
    stage = storage.join(plan.dataset, STAGE)
    tasks = [removal_task(stage, one.shard, one.rejects, one.keys) for one in plan.concerned]
    work = RemoveJob(plan.dataset, measure=plan.manifest.histograms is not None)
    return carry_out(ShardPlan(plan.dataset, stage, [*plan.manifest.jobs, plan.job], tasks, work, {}))


def _remove(dataset: str, keys: list[str]) -> Manifest:
    plan = plan_remove(dataset, keys)
    if not plan.begun:
        commit_stage(plan, _stage(plan))
    return finish_removal(plan.dataset, plan.asked)


KEYS = ["cat/1.png", "dog/5.png", "cat/bad0.jpg"]


def test_only_the_shards_concerned_are_written_again(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    before, table = load_manifest(dataset), rows(dataset)
    assert len(before.shards) > 3
    manifest = _remove(dataset, KEYS)
    kept = [row for row in table.to_pylist() if row["key"] not in KEYS]
    assert rows(dataset).to_pylist() == kept
    old = {shard.name: shard.digest for shard in before.shards}
    changed = [shard.name for shard in manifest.shards if old[shard.name] != shard.digest]
    assert 1 <= len(changed) <= 3 < len(before.shards)
    assert load_manifest(dataset) == manifest
    assert not Path(dataset, STAGE).exists()


def test_counts_rejects_and_history_follow_the_removal(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    before = load_manifest(dataset)
    manifest = _remove(dataset, KEYS)
    tally = manifest.tally
    assert tally.classes == {"cat": 5, "dog": 5}
    assert (tally.rows_in, tally.rows_out, tally.dropped) == (14, 10, {"removed": 3})
    assert sum(tally.rejected.values()) == 1
    assert tally.balanced
    assert pq.read_table(Path(dataset, "_rejects"))["key"].to_pylist() == ["cat/bad1.jpg"]
    assert tally.image_bytes_out == sum(len(row["image"]["bytes"]) for row in rows(dataset).to_pylist())
    assert [job.kind for job in manifest.jobs] == ["ingest", "remove"]
    assert manifest.job.source_digest == before.digest


def test_histograms_are_those_of_the_pictures_that_stay(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, measure=True)
    manifest = _remove(dataset, KEYS)
    again = carry_out(plan_filter(dataset, str(tmp_path / "again"), "", measure=True))
    assert manifest.histograms == again.histograms


def test_unknown_keys_are_told_and_nothing_changes(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    whole = content(dataset)
    with pytest.raises(UsageError, match=r"does not hold 1 of the 2 keys: 'owl/1.png'; --ignore-unknown removes"):
        plan_remove(dataset, ["cat/1.png", "owl/1.png"])
    assert content(dataset) == whole
    assert plan_remove(dataset, ["cat/1.png", "owl/1.png"], ignore_unknown=True).unknown == ["owl/1.png"]


class _Killed(BaseException):
    pass


def _killing(real: Callable[..., Any], calls: int) -> Callable[..., Any]:
    """Returns a function that dies at a call, as a kill between two writes does."""
    left = [calls]

    def call(*arguments: Any, **options: Any) -> Any:
        if left[0] == 0:
            raise _Killed
        left[0] -= 1
        return real(*arguments, **options)

    return call


@pytest.mark.parametrize("name", ["move", "remove", "write_bytes"])
def test_after_a_kill_at_any_write_the_same_command_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    reference = _dataset(tmp_path / "reference")
    _remove(reference, KEYS)
    expected = rows(reference)
    for calls in itertools.count():
        dataset = _dataset(tmp_path / f"{calls}")
        before = rows(dataset)
        with monkeypatch.context() as patch:
            patch.setattr(storage, name, _killing(getattr(storage, name), calls))
            try:
                _remove(dataset, KEYS)
            except _Killed:
                killed = True
            else:
                killed = False
        manifest = find_manifest(dataset)
        assert manifest is not None
        if manifest.complete and manifest.job.kind == "ingest":
            assert rows(dataset).equals(before), "as it was"
        elif manifest.complete:
            assert rows(dataset).equals(expected), "done"
        assert _remove(dataset, KEYS).complete
        assert rows(dataset).equals(expected)
        assert not Path(dataset, STAGE).exists()
        if not killed:
            assert calls > 0, "some write was cut"
            break


def _bundle_on(dataset: str, folder: Path, base: tuple[str, str] | None = None) -> str:
    """Writes a bundle that was trained on a dataset as it is now, perhaps from a bundle's weights; returns its id."""
    bundle = Bundle.load(make_bundle(folder.parent / "made" / folder.name))
    digest = load_manifest(dataset).digest
    provenance: dict[str, Any] = {"datasets": {"train": dataset}, "dataset_digests": {"train": digest}}
    if base is not None:
        provenance["weights"] = {"bundle": base[0], "bundle_id": base[1]}
    record = bundle.record.model_copy(update={"provenance": provenance})
    Bundle.of_model(record, bundle.model, "cpu").save(str(folder))
    return load_record(str(folder)).id


def test_bundles_and_datasets_with_the_pictures_are_named(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    cats, dogs = str(tmp_path / "cats"), str(tmp_path / "dogs")
    for destination, label in ((cats, "cat"), (dogs, "dog")):
        carry_out(plan_filter(dataset, destination, f"keep_labels(['{label}'])"))
    _dataset(tmp_path / "unrelated")
    carry_out(plan_merge([cats, dogs], str(tmp_path / "merged"), on_clash="prefix"))
    convert(cats, tmp_path / "cats_folders", "folders")
    convert(dogs, tmp_path / "dogs_folders", "folders")
    bundles: dict[str, str] = {}
    for name, source in (("on_raw", dataset), ("on_cats", cats), ("on_dogs", dogs)):
        bundles[name] = _bundle_on(source, tmp_path / name)
    affected = find_affected(plan_remove(dataset, ["cat/1.png"]), [])
    assert {use.bundle_id for use in affected.uses} == {bundles["on_raw"], bundles["on_cats"]}
    assert affected.datasets == {cats: 1, str(tmp_path / "merged"): 1}
    assert affected.exports == [str(tmp_path / "cats_folders")]
    assert affected.problems == []


def test_bundles_that_began_with_a_concerned_ones_weights_are_named(tmp_path: Path) -> None:
    dataset, other = _dataset(tmp_path), _dataset(tmp_path / "other")
    ids = [_bundle_on(dataset, tmp_path / "z_first")]
    for number, base in enumerate(("z_first", "tuned0")):
        ids.append(_bundle_on(other, tmp_path / f"tuned{number}", (str(tmp_path / base), ids[-1])))
    _bundle_on(other, tmp_path / "unrelated")
    uses = find_affected(plan_remove(dataset, ["cat/1.png"]), []).uses
    assert [use.bundle_id for use in uses] == ids
    assert [use.role for use in uses] == ["train", "weights", "weights"]
    assert [use.dataset for use in uses] == [dataset, str(tmp_path / "z_first"), str(tmp_path / "tuned0")]


def test_what_was_made_before_an_earlier_removal_is_named_too(tmp_path: Path) -> None:
    dataset, good, dogs = _dataset(tmp_path), str(tmp_path / "good"), str(tmp_path / "dogs")
    carry_out(plan_filter(dataset, good, "min_size(20)"))
    carry_out(plan_filter(dataset, dogs, "keep_labels(['dog'])"))
    bundle = _bundle_on(good, tmp_path / "on_good")
    _bundle_on(dogs, tmp_path / "on_dogs")
    convert(good, tmp_path / "good_folders", "folders")
    _remove(good, ["cat/1.png"])
    _remove(dogs, ["dog/1.png"])
    affected = find_affected(plan_remove(dataset, ["cat/2.png"]), [])
    assert [use.bundle_id for use in affected.uses] == [bundle]
    assert affected.exports == [str(tmp_path / "good_folders")]


def test_a_dataset_that_cannot_be_read_does_not_stop_a_removal(tmp_path: Path) -> None:
    dataset, damaged, small = _dataset(tmp_path), tmp_path / "damaged", str(tmp_path / "small")
    carry_out(plan_filter(dataset, str(damaged), "min_size(20)"))
    carry_out(plan_filter(dataset, small, "min_size(19)"))
    bundle = _bundle_on(str(damaged), tmp_path / "on_damaged")
    (damaged / load_manifest(str(damaged)).shards[0].name).write_bytes(b"no longer Parquet")
    affected = find_affected(plan_remove(dataset, ["cat/1.png"]), [])
    assert affected.datasets == {small: 1}
    assert [use.bundle_id for use in affected.uses] == [bundle]  # it may have been trained on them
    [problem] = affected.problems
    assert problem.startswith(f"{damaged} cannot be read, so it was not looked at: ")


def test_keys_come_from_a_text_a_csv_or_a_parquet_column(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("a b\r\nc,d\n\na b\n", "utf-8")
    (tmp_path / "keys.csv").write_text('name,key\n1,"a ""b"\n2,c\n', "utf-8")
    pq.write_table(pa.table({"picture": ["x", "y"]}), tmp_path / "keys.parquet")
    assert read_keys(str(tmp_path / "keys.txt")) == ["a b", "c,d"]
    assert read_keys(str(tmp_path / "keys.csv")) == ['a "b', "c"]
    assert read_keys(str(tmp_path / "keys.parquet"), "picture") == ["x", "y"]
    with pytest.raises(UsageError, match="has no column 'key'; it has picture"):
        read_keys(str(tmp_path / "keys.parquet"))
    with pytest.raises(UsageError, match="has no effect"):
        read_keys(str(tmp_path / "keys.txt"), "key")


def test_what_was_computed_from_removed_pictures_goes_too(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    before = {shard.name: shard.digest for shard in load_manifest(dataset).shards}
    folders = ("_measures", "_measures/model", "_features/0123", "_features/0123/_rejects", "_decisions")
    for name in before:
        write_files(Path(dataset), {f"{folder}/{name}": b"cat/1.png" for folder in folders})
    keys, kept = ["cat/1.png", "cat/2.png", "dog/1.png"], [None, "cat/1.png", None]
    pq.write_table(pa.table({"key": keys, "kept": pa.array(kept, pa.string())}), Path(dataset, "_duplicates.parquet"))
    manifest = _remove(dataset, KEYS)
    stale = {shard.name for shard in manifest.shards if before[shard.name] != shard.digest}
    assert stale
    for folder in folders:
        left = {path.name for path in Path(dataset, folder).iterdir() if path.is_file()}
        assert left.isdisjoint(stale)
        assert len(left) >= len(before) - len(KEYS)
    assert pq.read_table(Path(dataset, "_duplicates.parquet"))["key"].to_pylist() == ["dog/1.png"]
    assert removal.REMOVED in manifest.tally.dropped


def test_a_plan_made_before_another_removal_is_refused(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    stale = plan_remove(dataset, ["cat/2.png"])
    manifest, table = _remove(dataset, KEYS), rows(dataset)
    with pytest.raises(UsageError, match="was changed by another command since this one read it"):
        remove_pictures(stale)
    assert load_manifest(dataset) == manifest
    assert rows(dataset).equals(table)
    _remove(dataset, ["cat/2.png"])
    assert "cat/2.png" not in rows(dataset)["key"].to_pylist()


def test_the_same_removal_twice_at_once_asks_for_another_run(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path)
    stale = plan_remove(dataset, KEYS)
    manifest = _remove(dataset, KEYS)
    with pytest.raises(UsageError, match="run the same command again"):
        remove_pictures(stale)
    assert remove_pictures(plan_remove(dataset, KEYS)) == manifest


def test_a_dataset_written_without_the_keys_was_not_changed_in_place(tmp_path: Path) -> None:
    dataset, copy = _dataset(tmp_path), str(tmp_path / "copy")
    plan = plan_remove(dataset, ["cat/1.png"], destination=copy)
    claim(copy, [*plan.manifest.jobs, plan.job], overwrite=False)
    with pytest.raises(StriateError, match=r"not (complete|finished)"):
        plan_remove(copy, ["cat/1.png"])


def test_a_job_that_read_a_dataset_before_a_removal_does_not_finish(tmp_path: Path) -> None:
    dataset, other = _dataset(tmp_path), _dataset(tmp_path / "other")
    filtered = plan_filter(dataset, str(tmp_path / "grey"), "grayscale").jobs[-1]
    merged = plan_merge([other, dataset], str(tmp_path / "all"), on_clash="prefix").jobs[-1]
    for job in (filtered, merged):
        check_unchanged(job)
    _remove(dataset, KEYS)
    for job in (filtered, merged):
        with pytest.raises(StriateError, match="raw was changed by another command while its pictures were read"):
            check_unchanged(job)


def test_a_merge_that_plans_other_rows_than_a_shard_holds_fails(tmp_path: Path) -> None:
    dataset, other = _dataset(tmp_path), _dataset(tmp_path / "other")
    plan = plan_merge([other, dataset], str(tmp_path / "all"), on_clash="keep-first")
    _remove(dataset, KEYS)
    with pytest.raises(StriateError, match="pictures, but its manifest"):
        carry_out(plan)
