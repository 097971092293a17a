"""Opens the pages of the tour in a real browser, from files, and compares the sandbox with `convolve`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.cli.app import run
from jobs.tour.book import CHAPTERS, run_tour
from library.errors import UsageError
from library.imaging import codec
from library.pipeline import Pipeline
from library.steps.convolution import Convolve

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")

#: The chapters that train nothing; the others are made by the test that is marked `faults`.
QUICK = ("pixels", "dense", "cortex", "filters", "sandbox")
BORDERS = ("reflect_101", "reflect", "replicate", "zeros")
#: Weights that are exact in binary, so that every order of summation gives the same sums; at most 50 of them, as OpenCV
#: sums larger kernels by a Fourier transform.
KERNELS = {
    "one weight": ((1.0,),),
    "Sobel": ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0)),
    "sharpen": ((0.0, -1.0, 0.0), (-1.0, 5.0, -1.0), (0.0, -1.0, 0.0)),
    "even": ((0.25, 0.5), (-0.125, 1.5)),
    "a row": ((0.5, 0.0, 0.25, 0.125),),
    "a column": ((1.0,), (-2.0,), (0.75,), (0.5,), (-0.25,)),
    "7 x 7": tuple(tuple(((3 * y + 5 * x) % 7 - 3) / 8 for x in range(7)) for y in range(7)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tour") / "book"
    result = run_tour(out, QUICK)
    assert list(result.chapters) == list(QUICK)
    assert result.resumed == []
    return out


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Any]:
    """Opens a file; at the end nothing may have been requested but files, and the console must be empty."""
    messages: list[str] = []
    requests: list[str] = []
    contexts: list[Any] = []

    def open_(file: Path, width: int = 1100) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []


@pytest.fixture
def sandbox(open_page: Any, folder: Path) -> Any:
    page = open_page(folder / "05-sandbox.html")
    page.wait_for_function("() => sandbox.state().output !== null")
    return page


def looks_whole(page: Any) -> None:
    """Checks that every picture is drawn, every link leads somewhere, and nothing is wider than the page."""
    broken = page.evaluate("[...document.images].filter((one) => one.naturalWidth === 0).map((one) => one.src)")
    assert broken == []
    links = page.evaluate("[...document.links].map((link) => link.href)")
    assert all(Path(link.removeprefix("file://")).is_file() for link in links)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.parametrize("width", [1100, 390])
def test_every_picture_of_every_page_loads_without_a_network(open_page: Any, folder: Path, width: int) -> None:
    pages = sorted(folder.glob("*.html"))
    assert len(pages) == 1 + len(QUICK)
    for file in pages:
        looks_whole(open_page(file, width))


def test_each_page_leads_to_the_next_one_and_names_its_commands(open_page: Any, folder: Path) -> None:
    page = open_page(folder / "index.html")
    page.click(".contents a")
    titles = [page.inner_text("h1")]
    while page.locator("a[rel=next]").count():
        assert page.locator(".commands pre").first.inner_text().startswith("striate ")
        page.click("a[rel=next]")
        titles.append(page.inner_text("h1"))
    assert titles == [chapter.title for chapter in CHAPTERS if chapter.name in QUICK]


def computed(page: Any, function: str, pixels: NDArray[Any], *arguments: Any) -> NDArray[np.uint8]:
    """What a function of the sandbox makes of a picture."""
    result = page.evaluate(
        """([name, data, height, width, channels, rest]) => {
            const result = sandbox[name]({ data, height, width, channels }, ...rest);
            return { ...result, data: [...result.data] };
        }""",
        [function, pixels.ravel().tolist(), *pixels.shape, list(arguments)],
    )
    return np.array(result["data"], np.uint8).reshape(result["height"], result["width"], result["channels"])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_sandbox_computes_exactly_what_convolve_computes(sandbox: Any, kernel: str) -> None:
    drawn = np.random.default_rng(0)
    paddings: list[str | int] = ["same", "valid", 0, 1, 5]
    for number, (stride, padding, border) in enumerate(itertools.product((1, 2, 3), paddings, BORDERS)):
        padded = padding not in ("valid", 0)
        settings: dict[str, Any] = {"kernel": KERNELS[kernel], "stride": stride, "padding": padding}
        settings |= {"dilation": 1 if kernel == "7 x 7" else 1 + number % 2, "offset": (0, 0.5)[number // 2 % 2]}
        settings |= {"border": border} if padded else {}
        pixels = drawn.integers(0, 256, (13, 17, 1 + 2 * (number % 2)), np.uint8)
        expected = Convolve(**settings)(pixels)
        result = computed(sandbox, "convolve", pixels, settings)
        np.testing.assert_array_equal(result, expected, err_msg=str(settings))


def test_kernels_that_are_divided_by_their_sum_agree_within_one(sandbox: Any) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (19, 23, 3), np.uint8)
    mean, uneven, decimals = ((1.0,) * 3,) * 3, ((1.0, 2.0, 3.0), (4.0, -5.0, 6.0), (7.0, 8.0, 9.0)), ((0.1, 0.7),)
    for kernel in (mean, uneven, decimals):
        settings: dict[str, Any] = {"kernel": kernel, "normalize": True}
        result = computed(sandbox, "convolve", pixels, settings).astype(int)
        expected = Convolve(**settings)(pixels).astype(int)
        assert np.abs(result - expected).max() <= 1
        assert (result == expected).mean() > 0.99


def test_the_sandbox_pools_and_turns_grey_as_the_steps_do(sandbox: Any) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (14, 11, 3), np.uint8)
    for size, stride in ((2, 2), (3, 1), (4, 3)):
        for function, step in (("maxPool", "max_pool"), ("avgPool", "avg_pool")):
            expected = Pipeline.parse(f"{step}(size={size}, stride={stride})").apply(pixels)
            np.testing.assert_array_equal(computed(sandbox, function, pixels, size, stride), expected)
    np.testing.assert_array_equal(computed(sandbox, "grey", pixels), Pipeline.parse("grayscale").apply(pixels))


def test_a_kernel_too_large_is_refused_as_convolve_refuses_it(sandbox: Any) -> None:
    with pytest.raises(sync_api.Error, match="does not fit"):
        computed(sandbox, "convolve", np.zeros((2, 9, 1), np.uint8), {"kernel": [[1]] * 3, "padding": "valid"})


def test_own_pictures_and_settings_give_the_pipeline_they_show(sandbox: Any) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (31, 40, 3), np.uint8)
    own = codec.encode(pixels, codec.Encoding("png"))[0]
    sandbox.set_input_files("#file", [{"name": "own.png", "mimeType": "image/png", "buffer": own}])
    sandbox.wait_for_function("() => sandbox.state().original.width === 40")
    sandbox.select_option("#preset", "sharpen")
    sandbox.fill("#stride", "2")
    sandbox.select_option("#padding", "pixels")
    sandbox.fill("#pixels", "3")
    sandbox.select_option("#border", "zeros")
    sandbox.select_option("#pool", "max_pool")
    sandbox.locator("#kernel input").nth(4).fill("6.5")
    state = sandbox.evaluate(
        "(() => { const one = sandbox.state(); return [one.call, one.output, [...one.output.data]]; })()"
    )
    expected = Pipeline.parse(state[0]).apply(pixels)
    assert (state[1]["height"], state[1]["width"]) == expected.shape[:2] == (9, 11)
    np.testing.assert_array_equal(np.array(state[2]).reshape(expected.shape), expected)
    assert "zeros" in state[0]
    assert "6.5" in state[0]


def test_a_second_tour_makes_only_what_is_missing(folder: Path) -> None:
    first = (folder / "01-pixels.html").read_bytes()
    (folder / "chapters" / "dense.json").unlink()
    (folder / "chapters" / "cortex.json").write_text('{"digest": "half a rec')
    (folder / "chapters" / "filters.json").write_text('["another", "format"]')
    result = run_tour(folder, QUICK)
    assert result.resumed == ["pixels", "sandbox"]
    assert (folder / "01-pixels.html").read_bytes() == first


def test_another_version_of_pytorch_makes_a_chapter_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_tour(folder, ["dense"]).resumed == ["dense"]
    with monkeypatch.context() as patched:
        patched.setattr("jobs.tour.book.training_versions", lambda: {"torch": "0.1"})
        assert run_tour(folder, ["dense"]).resumed == []
    assert run_tour(folder, ["dense"]).resumed == []


def test_wrong_chapters_and_folders_of_others_are_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(UsageError, match="did you mean 'filters'"):
        run_tour(folder, ["filter"])
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(["tour", "--out", str(tmp_path), "--json"]) == 2
    assert "contains other files" in json.loads(capsys.readouterr().out)["error"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.txt"]
    assert run(["tour", "--out", str(tmp_path / "thesis.txt"), "--json"]) == 2
    assert "is a file" in json.loads(capsys.readouterr().out)["error"]


@pytest.mark.faults
@pytest.mark.timeout(1800)  # minutes on a quiet machine
def test_the_whole_tour_is_a_book_of_every_chapter(open_page: Any, folder: Path) -> None:
    result = run_tour(folder)
    assert list(result.chapters) == [chapter.name for chapter in CHAPTERS]
    for file, width in itertools.product(sorted(folder.glob("*.html")), (1100, 390)):
        looks_whole(open_page(file, width))
    numbers = result.chapters["digits"]["numbers"]
    assert min(numbers["lenet5"] + numbers["mlp"]) > 0.9
    # The networks whose accuracies are listed are those that read the moved digits: nothing is moved by 0 pixels.
    for kind, place in (("mlp", 1), ("lenet5", 2)):
        assert numbers["moved"][0][place] == pytest.approx(sum(numbers[kind]) / 3, abs=0.01)
    assert "Not made yet" not in (folder / "index.html").read_text("utf-8")
