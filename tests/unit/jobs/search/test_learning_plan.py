"""What `striate learn-filter` plans and refuses before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from jobs.search.learning import plan_learn
from library.errors import UsageError
from tests.picture_examples import encoded, ingest, write_files


def dataset(folder: Path, *, channels: tuple[int, ...] = (3, 3), side: int = 20, kind: str = "png") -> str:
    files = {
        f"{label}/{number}.{kind}": encoded(kind, side, side + 4, channels[number % len(channels)])
        for label in ("cat", "dog")
        for number in range(4)
    }
    ingest(write_files(folder / "raw", files), folder / "data")
    return str(folder / "data")


@pytest.mark.parametrize(
    ("channels", "grey", "first", "model"),
    [
        ((3,), False, "", "filter_net()"),
        ((3,), True, "grayscale", "filter_net(in_chans=1)"),
        ((1,), False, "", "filter_net(in_chans=1)"),
        ((1, 3), False, "rgb", "filter_net()"),
    ],
)
def test_the_kernels_see_the_pictures_own_channels_or_grey(
    tmp_path: Path, channels: tuple[int, ...], grey: bool, first: str, model: str
) -> None:
    plan = plan_learn(dataset(tmp_path, channels=channels), str(tmp_path / "out"), grey=grey, val=None)
    assert plan.first == first
    assert plan.training.inputs.channels == (3 if model == "filter_net()" else 1)
    assert plan.side_px == 20
    assert len(plan.training.val or ()) > 0
    assert not [*(tmp_path / "out").rglob("*")]


def test_large_pictures_are_scaled_down_unless_their_side_is_given(tmp_path: Path) -> None:
    data = dataset(tmp_path, side=90)
    assert plan_learn(data, str(tmp_path / "out")).side_px == 64
    assert plan_learn(data, str(tmp_path / "out"), picture_px=80).training.inputs.size == (80, 80)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 4}, "--size 4: must be one of 3, 5, 7, 9, 11"),
        ({"count": 0}, "--count 0: must be 1 to 256"),
        ({"picture_px": 4}, "--picture-px 4: must be at least 8"),
        ({"epochs": -1.0}, "epochs"),
    ],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_learn(dataset(tmp_path), str(tmp_path / "out"), **options)


def test_grey_for_grey_pictures_has_no_effect_and_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--grey has no effect"):
        plan_learn(dataset(tmp_path, channels=(1,)), str(tmp_path / "out"), grey=True)


def test_a_folder_with_another_page_or_a_dataset_is_not_written_to(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<html>mine</html>")
    with pytest.raises(UsageError, match=r"--out .* contains a page"):
        plan_learn(data, str(tmp_path / "page"))
    with pytest.raises(UsageError, match=r"--out .* is inside the dataset"):
        plan_learn(data, str(tmp_path / "data" / "learned"))
