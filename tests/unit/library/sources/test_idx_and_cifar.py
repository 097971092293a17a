import gzip
import io
import pickle
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from library.errors import StriateError, UsageError
from library.imaging import codec
from library.sources import Options, extras_of, list_source, read_pictures
from tests.source_examples import idx_images, idx_labels, labels, read_all, rows, shared, write_tar, write_tree

_RNG = np.random.default_rng(0)
DIGITS = _RNG.integers(0, 256, (5, 6, 4), np.uint8)


def _mnist(packed: bool) -> dict[str, bytes]:
    files = {
        "train-images-idx3-ubyte": idx_images(DIGITS),
        "train-labels-idx1-ubyte": idx_labels([3, 1, 4, 1, 5]),
        "t10k-images-idx3-ubyte": idx_images(DIGITS[:2]),
        "t10k-labels-idx1-ubyte": idx_labels([9, 2]),
    }
    return {f"{name}.gz": gzip.compress(data) for name, data in files.items()} if packed else files


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files_are_png_pictures_with_digits_and_splits(tmp_path: Path, packed: bool) -> None:
    listing = list_source(str(write_tree(tmp_path, _mnist(packed))))
    assert listing.kind == "idx"
    assert labels(listing)["train-images-idx3-ubyte/00002"] == "4"
    assert Counter(row["split"] for row in rows(listing).values()) == Counter(train=5, test=2)
    reads = read_all(listing)
    for number in range(5):
        pixels = codec.decode(reads[f"train-images-idx3-ubyte/{number:05}"].data or b"")
        assert np.array_equal(pixels[:, :, 0], DIGITS[number])


@pytest.mark.parametrize("packed", [True, False])
def test_a_single_idx_file_has_its_labels_beside_it(tmp_path: Path, packed: bool) -> None:
    write_tree(tmp_path, _mnist(packed))
    (name,) = (path.name for path in tmp_path.glob("t10k-images*"))
    listing = list_source(str(tmp_path / name))
    assert list(labels(listing).values()) == ["9", "2"]
    assert set(listing.index.column("split").to_pylist()) == {"test"}


def test_idx_files_may_have_dots_in_their_names(tmp_path: Path) -> None:
    files = {name.replace("-idx", ".idx"): data for name, data in _mnist(False).items()}
    assert list_source(str(write_tree(tmp_path, files))).index.num_rows == 7


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "train-images-idx3-ubyte",
            lambda data: data[:-1],
            "is truncated: 5 pictures of 4 x 6 need 136 bytes, it has 135",
        ),
        ("train-images-idx3-ubyte", lambda data: data + b"x", "is damaged: 5 pictures"),
        ("train-images-idx3-ubyte", lambda data: b"\0\0\x0d\x03" + data[4:], "it is not an IDX file of grey pictures"),
        ("train-images-idx3-ubyte", lambda data: data[:9], "it ends in its header"),
        ("train-labels-idx1-ubyte", lambda data: idx_labels([1]), "has 1 labels, but .* has 5 pictures"),
        ("train-labels-idx1-ubyte", lambda data: data[:-1], "declares 5 labels, but has 4"),
        ("train-labels-idx1-ubyte", lambda data: idx_images(DIGITS), "it is not an IDX file of labels"),
    ],
)
def test_damaged_and_mismatched_idx_files_are_errors(tmp_path: Path, name: str, change, message: str) -> None:  # type: ignore[no-untyped-def]
    files = _mnist(False)
    files[name] = change(files[name])
    with pytest.raises(StriateError, match=message):
        list_source(str(write_tree(tmp_path, files)))


def test_idx_pictures_without_labels_are_an_error_that_names_the_file(tmp_path: Path) -> None:
    files = _mnist(True)
    del files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(UsageError, match=r"it needs t10k-labels-idx1-ubyte, or the same with .gz"):
        list_source(str(write_tree(tmp_path, files)))


def test_options_for_columns_have_no_effect_on_idx(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--label-column has no effect on IDX files"):
        list_source(str(write_tree(tmp_path, _mnist(False))), Options(label_column="digit"))


def test_mnist_can_be_read() -> None:
    listing = list_source(shared("mnist"))
    assert Counter(listing.index.column("split").to_pylist()) == Counter(train=60_000, test=10_000)
    assert set(listing.index.column("label").to_pylist()) == set("0123456789")
    some = listing.index.take(random.Random(1).sample(range(70_000), 500))
    for read in read_pictures(listing.kind, some, listing.gzip_indexes):
        header = codec.probe(read.data or b"")
        assert (header.format, header.width, header.height, header.channels) == ("png", 28, 28, 1)


PIXELS = _RNG.integers(0, 256, (4, 3, 32, 32), np.uint8)


def _cifar10() -> dict[str, bytes]:
    records = b"".join(bytes([number % 3]) + PIXELS[number].tobytes() for number in range(4))
    folder = "cifar-10-batches-bin"
    return {
        f"{folder}/data_batch_1.bin": records,
        f"{folder}/data_batch_2.bin": records,
        f"{folder}/test_batch.bin": records[: 2 * 3073],
        f"{folder}/batches.meta.txt": b"airplane\nautomobile\nbird\n\n",
        f"{folder}/readme.html": b"<html>",
    }


@pytest.mark.parametrize("form", ["folder", "c.tar.gz", "c.tar"])
def test_cifar_10_has_class_names_splits_and_its_own_pixels(tmp_path: Path, form: str) -> None:
    source = write_tree(tmp_path / "c", _cifar10()) if form == "folder" else write_tar(tmp_path / form, _cifar10())
    listing = list_source(str(source))
    assert listing.kind == "cifar"
    assert listing.skipped == Counter(beside=1)
    reads = rows(listing)
    assert Counter(row["split"] for row in reads.values()) == Counter(train=8, test=2)
    key = "cifar-10-batches-bin/data_batch_2.bin/00002"
    assert reads[key]["label"] == "bird"
    pixels = codec.decode(read_all(listing)[key].data or b"")
    assert np.array_equal(pixels, PIXELS[2].transpose(1, 2, 0))


def test_cifar_100_has_fine_labels_and_a_column_of_coarse_ones(tmp_path: Path) -> None:
    records = b"".join(bytes([1, number]) + PIXELS[number].tobytes() for number in range(2))
    files = {
        "train.bin": records,
        "test.bin": records,
        "fine_label_names.txt": b"apple\nfish\n",
        "coarse_label_names.txt": b"a\nb\n",
    }
    listing = list_source(str(write_tree(tmp_path, files)))
    assert labels(listing) == {
        "test.bin/00000": "apple",
        "test.bin/00001": "fish",
        "train.bin/00000": "apple",
        "train.bin/00001": "fish",
    }
    assert extras_of(listing.index).column("coarse_label").to_pylist() == ["b"] * 4


def test_a_single_cifar_file_has_its_class_names_beside_it(tmp_path: Path) -> None:
    write_tree(tmp_path, _cifar10())
    listing = list_source(str(tmp_path / "cifar-10-batches-bin" / "test_batch.bin"))
    assert labels(listing) == {"test_batch.bin/00000": "airplane", "test_batch.bin/00001": "automobile"}


def test_a_truncated_cifar_file_or_a_label_without_a_name_is_an_error(tmp_path: Path) -> None:
    files = _cifar10()
    short = {**files, "cifar-10-batches-bin/data_batch_1.bin": files["cifar-10-batches-bin/data_batch_1.bin"][:-5]}
    with pytest.raises(StriateError, match=r"data_batch_1\.bin in .* is truncated"):
        list_source(str(write_tree(tmp_path / "short", short)))
    names = {**files, "cifar-10-batches-bin/batches.meta.txt": b"airplane\n"}
    with pytest.raises(StriateError, match="has the label 2, but its list of names has 1"):
        list_source(str(write_tree(tmp_path / "names", names)))


def test_pickled_cifar_is_refused_and_not_opened(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, ("raise SystemExit('ran')",))

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name in ("data_batch_1", "test_batch", "batches.meta"):
            data = pickle.dumps(Evil())
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(out.getvalue())
    with pytest.raises(UsageError, match=r"pickle: reading it would run any code.*cifar-10-binary"):
        list_source(str(tmp_path / "cifar-10-python.tar.gz"))
