"""Drives the web page (`serve/web`) in a real browser, with the real applications behind it."""

from __future__ import annotations

import base64
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.demo.demo import demo_pictures
from library.imaging import codec
from serve.http.keys import new_key
from serve.settings import ServeSettings
from tests.e2e.page_server import PROVENANCE, EngineModel, PageServer, make_bundle
from tests.waiting import until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}")

_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_PHOTOS = dict(takewhile(lambda picture: picture[0].startswith("photos/"), demo_pictures()))
CHINA, FLOWER, HOPPER = (
    next((path.rsplit("/")[-1], data) for path, data in _PHOTOS.items() if f"/{label}-" in path)
    for label in ("china", "flower", "hopper")
)
_VIOLATIONS = (
    "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective, e.blockedURI))"
)
LONG_NAMES = [f"class number {n}, which has quite a long name as those of ImageNet do" for n in range(1000)]


@pytest.fixture(scope="module")
def models() -> Iterator[dict[str, EngineModel]]:
    settings = ServeSettings()
    engines = {
        "grey": EngineModel("grey", make_bundle(("ant", "bee"), "min_size(64) | grayscale", channels=1), settings),
        "photos": EngineModel("photos", make_bundle(("china", "flower", "hopper"), "rgb"), settings, capacity=2),
        "wide": EngineModel("wide", make_bundle(LONG_NAMES, "rgb"), settings),
    }
    yield engines
    for model in engines.values():
        model.engine.close()


@pytest.fixture(scope="module")
def server(models: dict[str, EngineModel]) -> Iterator[PageServer]:
    with PageServer(models, ServeSettings()) as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, server: PageServer) -> Iterator[Any]:
    """Opens the page; at the end its console may contain only messages about refused requests."""
    messages: list[str] = []
    contexts: list[Any] = []

    def open_(url: str = "", ready: bool = True, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.add_init_script(_VIOLATIONS)
        page.on(
            "console", lambda message: messages.append(message.text) if message.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.goto(url or server.url)
        if ready:
            page.wait_for_selector(".server.ready")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert [text for text in messages if not text.startswith("Failed to load resource")] == []


def choose(page: Any, *files: tuple[str, bytes]) -> None:
    page.set_input_files("#files", [{"name": name, "mimeType": "image/jpeg", "buffer": data} for name, data in files])


def bars(page: Any, model: str) -> list[tuple[str, str]]:
    """The ranked classes that a model's panel shows."""
    page.wait_for_selector(f".panel[aria-label={model}] .bars li")
    items = page.locator(f".panel[aria-label={model}] .bars li")
    shown = "(items) => items.map((item) => ['.name', '.share'].map((part) => item.querySelector(part).innerText))"
    return [(name, share) for name, share in items.evaluate_all(shown)]


def ranked(model: EngineModel, data: bytes, top_k: int = 5) -> list[tuple[str, str]]:
    return [(name, f"{share:.1%}".replace("%", " %")) for name, share in model.bundle.predict(data, top_k).classes]


def holds(page: Any, expression: str) -> None:
    """Waits until the expression is true; the page's policy prevents Playwright from waiting inside it."""
    until(lambda: page.evaluate(expression))


def no_sideways_scroll(page: Any) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_each_of_several_pictures_gets_its_own_ranked_bars(open_page: Any, models: dict[str, EngineModel]) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    choose(page, CHINA, FLOWER, HOPPER)
    assert bars(page, "photos") == ranked(models["photos"], CHINA[1])
    holds(page, "document.querySelectorAll('.row .best b').length === 3")
    best = [" ".join(row.all_inner_texts()) for row in [one.locator("> *") for one in page.locator(".row .best").all()]]
    assert best == [" ".join(ranked(models["photos"], data, 1)[0]) for _, data in (CHINA, FLOWER, HOPPER)]
    page.click(f".row:has-text('{HOPPER[0]}')")
    assert page.inner_text("#result-title") == HOPPER[0]
    assert "224 \N{MULTIPLICATION SIGN} 224" in page.inner_text("#result-facts")
    assert bars(page, "photos") == ranked(models["photos"], HOPPER[1])
    share = page.evaluate("document.querySelector('.bars .bar').style.getPropertyValue('--share')")
    assert float(share) == pytest.approx(models["photos"].bundle.predict(HOPPER[1]).classes[0][1], abs=1e-5)


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_pictures_can_be_dropped_and_pasted(open_page: Any, models: dict[str, EngineModel], way: str) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    page.evaluate(
        """([way, data, name]) => {
            const bytes = Uint8Array.from(atob(data), (char) => char.charCodeAt(0));
            const carried = new DataTransfer();
            carried.items.add(new File([bytes], name, { type: "image/jpeg" }));
            const options = { bubbles: true, cancelable: true };
            const event = way === "drop"
              ? new DragEvent("drop", { ...options, dataTransfer: carried })
              : new ClipboardEvent("paste", { ...options, clipboardData: carried });
            document.body.dispatchEvent(event);
        }""",
        [way, base64.b64encode(FLOWER[1]).decode(), FLOWER[0]],
    )
    assert bars(page, "photos") == ranked(models["photos"], FLOWER[1])


def test_a_bad_file_shows_the_servers_message_and_stops_no_other_file(open_page: Any) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    choose(page, ("<img src=x onerror=alert(1)>.jpg", b"<html>404 Not Found</html>\n"), FLOWER)
    page.wait_for_selector(".state.failed")
    text = page.inner_text(".state.failed")
    assert "Unreadable file" in text
    assert "400 Bad Request (not_an_image)" in text
    assert "Send a picture as JPEG" in text
    page.wait_for_selector(".row .best b")
    assert page.inner_text("#result-title") == "<img src=x onerror=alert(1)>.jpg"
    assert page.locator("#pictures .best.wrong").count() == 1


def test_a_picture_dropped_by_the_model_is_shown_with_the_reason(open_page: Any) -> None:
    page = open_page()
    pixels = codec.decode(CHINA[1])[:40, :40]
    page.select_option("#first", "grey")
    choose(page, ("small.png", codec.encode(pixels, codec.Encoding("png"))[0]))
    page.wait_for_selector(".state.failed")
    assert "Dropped: below_min_size" in page.inner_text(".state.failed")


def test_a_format_that_browsers_cannot_draw_is_drawn_by_the_server(open_page: Any) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    tiff = codec.encode(codec.decode(CHINA[1]), codec.Encoding("tiff"))[0]
    page.set_input_files("#files", [{"name": "scan.tiff", "mimeType": "image/tiff", "buffer": tiff}])
    bars(page, "photos")
    holds(page, "document.querySelector('.panel .shown').naturalWidth === 224")


def test_grad_cam_covers_the_picture_and_can_be_switched(open_page: Any) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    choose(page, CHINA)
    bars(page, "photos")
    assert not page.is_visible(".heat")
    page.check("#explain")
    page.wait_for_selector(".heat")
    holds(page, "document.querySelector('.heat').naturalWidth > 0")
    assert page.locator(".heat").bounding_box() == page.locator(".panel .shown").bounding_box()
    page.fill("#strength", "30")
    holds(page, "getComputedStyle(document.querySelector('.heat')).opacity === '0.3'")
    page.uncheck("#explain")
    assert not page.is_visible(".heat")


def test_the_inside_of_the_models_is_drawn_part_by_part(open_page: Any) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    choose(page, CHINA)
    bars(page, "photos")
    page.focus("#tab-answer")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-inside"
    holds(page, "[...document.querySelectorAll('.sheet img')].filter((image) => image.naturalWidth > 100).length === 5")
    assert page.locator(".inside .state.failed").count() == 0
    assert page.locator(".bars").count() == 0
    before = page.get_attribute("[data-part=occlusion] img", "src")
    page.select_option(".inside select", "hopper")
    holds(page, f"document.querySelector('[data-part=occlusion] img')?.src !== {before!r} && "
          "document.querySelectorAll('.sheet img').length === 5")  # fmt: skip
    page.set_viewport_size({"width": 360, "height": 740})
    assert no_sideways_scroll(page)
    page.click("#tab-answer")
    bars(page, "photos")


def test_a_part_that_a_model_lacks_is_asked_for_once(open_page: Any) -> None:
    settings = ServeSettings()
    flat = make_bundle(("ant", "bee"), "rgb", model="mlp(hidden=[8], in_chans=3)")
    model = EngineModel("flat", flat, settings)
    with PageServer({"flat": model}, settings) as alone:
        page = open_page(alone.url)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        choose(page, CHINA)
        page.click("#tab-inside")
        holds(page, "document.querySelectorAll('.sheet img').length === 4")
        page.wait_for_selector("[data-part=grad_cam] .state.failed")
        assert page.locator("[data-part=grad_cam] button").count() == 0
        assert sum("part=grad_cam" in url for url in asked) == 1
        before = page.get_attribute("[data-part=occlusion] img", "src")
        page.select_option(".inside select", "bee")
        holds(page, f"(document.querySelector('[data-part=occlusion] img')?.src ?? {before!r}) !== {before!r}")
        assert sum("part=grad_cam" in url for url in asked) == 1
    model.engine.close()


def test_no_part_waits_for_a_lost_server_for_ever(open_page: Any, models: dict[str, EngineModel]) -> None:
    with PageServer(models, ServeSettings()) as restarted:
        page = open_page(restarted.url)
        page.select_option("#first", "photos")
        choose(page, CHINA)
        page.click("#tab-inside")
        holds(page, "document.querySelectorAll('.sheet img').length === 5")
        restarted.stop()
        page.select_option(".inside select", "hopper")
        page.wait_for_selector("[data-part=grad_cam] .state.failed")
        assert "Not drawn" in page.inner_text("[data-part=occlusion] .drawing")
        assert "Waiting for its turn" not in page.inner_text(".inside")
        restarted.start()
        page.click("[data-part=grad_cam] button")
        holds(page, "document.querySelectorAll('.sheet img').length === 5")


def test_the_page_shows_the_models_input_and_provenance(open_page: Any, models: dict[str, EngineModel]) -> None:
    page = open_page()
    page.select_option("#first", "grey")
    choose(page, CHINA)
    page.wait_for_selector(".seen img")
    assert page.evaluate("document.querySelector('.seen img').naturalWidth") == 28
    assert "28 \N{MULTIPLICATION SIGN} 28, grey" in page.inner_text(".seen")
    facts = page.inner_text("#origins")
    for fact in (models["grey"].bundle.id, PROVENANCE["git_commit"], "cd" * 32, "87.50 %", "s3://pictures/train"):
        assert str(fact) in facts
    page.click("text=Try them above")
    page.wait_for_selector(".after img")
    assert page.evaluate("document.querySelector('.after img').naturalWidth") == 28


def test_two_models_answer_side_by_side(open_page: Any, models: dict[str, EngineModel]) -> None:
    page = open_page()
    page.select_option("#first", "photos")
    page.select_option("#second", "grey")
    choose(page, FLOWER)
    assert bars(page, "photos") == ranked(models["photos"], FLOWER[1])
    assert bars(page, "grey") == ranked(models["grey"], FLOWER[1])
    first, second = (page.locator(".panel").nth(n).bounding_box() for n in (0, 1))
    assert first["y"] == second["y"]
    assert first["x"] + first["width"] <= second["x"]
    best = [ranked(models[name], FLOWER[1], 1)[0][0] for name in ("photos", "grey")]
    assert page.inner_text("#agree") == f"photos says {best[0]}, grey says {best[1]}."
    assert page.locator(".facts").count() == 2


def test_a_mistake_in_steps_is_marked_while_typing(open_page: Any) -> None:
    page = open_page()
    choose(page, CHINA)
    # An emoji is one character in Python, and two in JavaScript.
    page.fill("#steps", 'keep_labels(["\N{CAT FACE}"]) | gausian_blur(sigma=1)')
    page.wait_for_selector(".mistake")
    assert page.inner_text(".mistake") == "gausian_blur"
    assert page.get_attribute(".mistake", "data-marks") == "^~~~~~~~~~~~"
    assert "did you mean 'gaussian_blur'" in page.inner_text("#steps-said")
    assert page.get_attribute("#steps", "aria-invalid") == "true"
    page.fill("#steps", "grayscale |")
    holds(page, "document.querySelector('.mistake')?.dataset.marks === '^'")
    page.fill("#steps", "grayscale | resize(40)")
    holds(page, "document.querySelector('.after img')?.naturalWidth === 40")
    assert page.locator(".mistake").count() == 0
    assert "interpolation=" in page.inner_text("#steps-said")
    page.fill("#steps", "min_size(1000)")
    page.wait_for_selector(".after .state.failed")
    assert "below_min_size" in page.inner_text(".after")


def test_steps_and_their_parameters_are_offered(open_page: Any) -> None:
    page = open_page()
    page.type("#steps", "grayscale | gau")
    page.wait_for_selector("#offers li")
    page.keyboard.press("Enter")
    assert page.input_value("#steps") == "grayscale | gaussian_blur()"
    page.keyboard.type("si")
    assert page.inner_text("#offers li code") == "sigma="
    page.keyboard.press("Enter")
    page.keyboard.type("2, border=")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Tab")
    assert page.input_value("#steps") == 'grayscale | gaussian_blur(sigma=2, border="reflect")'
    page.wait_for_selector("#steps-said.fine")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not page.is_visible("#offers")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "example"


def test_a_thousand_classes_with_long_names_fit(open_page: Any) -> None:
    page = open_page()
    page.select_option("#first", "wide")
    choose(page, CHINA)
    assert len(bars(page, "wide")) == 5
    page.select_option("#top", "1000")
    holds(page, "document.querySelectorAll('.bars li').length === 1000")
    assert no_sideways_scroll(page)
    assert page.locator(".panel").bounding_box()["height"] < 900


def test_a_phone_shows_everything_without_scrolling_sideways(open_page: Any) -> None:
    page = open_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    assert page.is_visible("label[for=photo]")
    assert page.get_attribute("#photo", "capture") == "environment"
    page.select_option("#first", "wide")
    page.select_option("#second", "grey")
    choose(page, ("a-name-without-any-blank-" * 6 + ".jpg", CHINA[1]), FLOWER)
    bars(page, "wide")
    bars(page, "grey")
    page.check("#explain")
    page.fill("#steps", "grayscale | " + "gaussian_blur(sigma=1) | " * 4 + "nothing_of_the_kind")
    page.wait_for_selector(".mistake")
    assert no_sideways_scroll(page)


def test_everything_works_by_keyboard(open_page: Any, models: dict[str, EngineModel]) -> None:
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    choose(page, CHINA, FLOWER)
    holds(page, "document.querySelectorAll('.row .best b').length === 2")
    page.focus(".row")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#result-title") == FLOWER[0]
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    holds(page, "document.getElementById('said').textContent !== ''")
    page.keyboard.press("Delete")
    assert page.inner_text("#tray-title") == "1 picture"
    assert page.evaluate("document.activeElement.textContent").startswith(CHINA[0])
    page.keyboard.press("Delete")
    assert page.evaluate("document.activeElement.id") == "files"
    unnamed = page.evaluate(
        "[...document.querySelectorAll('select, input, textarea')].filter((e) => !e.labels.length && !e.ariaLabel && "
        "!e.getAttribute('aria-labelledby')).map((e) => e.id)"
    )
    assert unnamed == []


def test_a_key_is_requested_checked_and_never_stored(open_page: Any, models: dict[str, EngineModel]) -> None:
    key, line = new_key("page")
    with PageServer(models, ServeSettings(keys=(line,))) as locked:
        page = open_page(locked.url, ready=False)
        page.wait_for_selector("#key-dialog[open]")
        page.keyboard.press("Escape")
        page.wait_for_selector(".server.waiting")
        page.click("#key-button")
        page.fill("#key", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-wrong:not([hidden])")
        page.fill("#key", key)
        page.keyboard.press("Enter")
        page.wait_for_selector(".server.ready")
        choose(page, CHINA)
        bars(page, "grey")
        page.wait_for_selector(".seen img")
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert key not in stored + page.content()
        assert page.input_value("#key") == ""
        page.reload()
        page.wait_for_selector("#key-dialog[open]")


def test_the_documentation_tries_a_request_with_a_key(open_page: Any, models: dict[str, EngineModel]) -> None:
    key, line = new_key("docs")
    with PageServer(models, ServeSettings(keys=(line,))) as locked:
        page = open_page(f"{locked.url}docs", ready=False)
        page.click("button.authorize")
        page.fill(".auth-container input", key)
        page.click(".auth-container button.authorize")
        page.click(".auth-container button.btn-done")
        predict = page.locator(".opblock-post", has_text="/models/{name}/predict")
        predict.locator(".opblock-summary-control").click()
        predict.locator(".try-out__btn").click()
        predict.locator("[data-param-name=name] input").fill("photos")
        picture = {"name": CHINA[0], "mimeType": "image/jpeg", "buffer": CHINA[1]}
        predict.locator("input[type=file]").set_input_files(picture)
        predict.locator("button.execute").click()
        answer = predict.locator(".live-responses-table").inner_text()
        assert models["photos"].bundle.id in answer
        stored = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
        assert key not in stored


def test_the_page_waits_for_a_slow_model_and_retries_a_busy_one(
    open_page: Any, server: PageServer, models: dict[str, EngineModel]
) -> None:
    slow = models["photos"]
    page = open_page()
    page.select_option("#first", "photos")
    slow.open.clear()
    try:
        choose(page, CHINA)
        page.wait_for_selector(".panel[aria-busy=true] .state.asking")
        assert "Asking photos" in page.inner_text(".state")
        with another_client(server.url, "photos", HOPPER[1]):
            until(lambda: not slow.engine_has_room(1))
            choose(page, FLOWER)
            page.wait_for_selector(".state.busy")
            assert "photos is busy" in page.inner_text(".state.busy")
            assert "Retrying" in page.inner_text(".state.busy .count")
            slow.open.set()
            assert bars(page, "photos") == ranked(slow, FLOWER[1])
        assert page.locator(".state:visible").count() == 0
    finally:
        slow.open.set()


def test_the_page_reports_a_lost_server_and_waits_for_it(open_page: Any, models: dict[str, EngineModel]) -> None:
    with PageServer(models, ServeSettings()) as restarted:
        page = open_page(restarted.url)
        page.select_option("#first", "photos")
        restarted.stop()
        choose(page, CHINA)
        page.wait_for_selector("#notice:not([hidden])")
        page.wait_for_selector(".state.offline")
        assert "offline" in page.inner_text("#server")
        restarted.start()
        assert bars(page, "photos") == ranked(models["photos"], CHINA[1])
        page.wait_for_selector("#notice", state="hidden")
        page.wait_for_selector(".server.ready")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(open_page: Any, scheme: str) -> None:
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    choose(page, CHINA, ("bad.jpg", b"nothing"))
    bars(page, "grey")
    page.wait_for_selector(".best.wrong")
    page.fill("#steps", "nothing")
    page.wait_for_selector(".mistake")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(channels(paper)) < 200) == (scheme == "dark")
    assert unreadable(page) == []
    assert page.evaluate("getComputedStyle(document.querySelector('.bar'), '::before').transitionDuration") == "0s"
    page.click(".row:has-text('bad.jpg')")
    page.wait_for_selector(".state.failed")
    assert unreadable(page) == []


#: Lists every visible element with text of its own: the text's colour and the nearest background behind it.
_WORDS = """() => [...document.body.querySelectorAll("*")].flatMap((element) => {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  const apart = element.closest("[aria-hidden=true], noscript, option, .unseen");
  if (!own || apart || !element.checkVisibility()) return [];
  const back = (one) => getComputedStyle(one).backgroundColor;
  let under = element;
  while (under.parentElement && /rgba\\(.*, 0\\)|transparent/.test(back(under))) under = under.parentElement;
  const text = element.textContent.trim().slice(0, 40);
  return [{ text, ink: getComputedStyle(element).color, under: back(under) }];
})"""


def unreadable(page: Any) -> list[tuple[str, float]]:
    """Texts with less contrast than WCAG 2 level AA requires, with their contrast."""
    texts = [
        (words["text"], round(contrast(channels(words["ink"]), channels(words["under"])), 2))
        for words in page.evaluate(_WORDS)
    ]
    return [(text, ratio) for text, ratio in texts if ratio < 4.5]


def channels(colour: str) -> list[float]:
    return [float(part) for part in colour.split("(")[1].rstrip(")").split(",")[:3]]


def contrast(ink: Sequence[float], under: Sequence[float]) -> float:
    """The contrast ratio of WCAG 2."""

    def luminance(colour: Sequence[float]) -> float:
        linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(ink), luminance(under)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@contextmanager
def another_client(url: str, model: str, data: bytes) -> Generator[None]:
    """Sends one more picture during the block and gets its answer at the end."""
    ask = {"url": f"{url}models/{model}/predict", "content": data, "timeout": 30}
    thread = threading.Thread(target=httpx.post, kwargs=ask)
    thread.start()
    yield
    thread.join(30)
