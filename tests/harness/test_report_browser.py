"""The report in a real browser: what is on the page can be seen, nothing is fetched, no name becomes code."""

import os
import shutil
from dataclasses import replace

import pytest
from harness.sample_run import claims, write_run
from harness.test_report import EVIL

from multirecon.harness.claims import parse_claim
from multirecon.harness.report import write_report
from multirecon.harness.workspace import image_file, load_image, save_image

pytestmark = pytest.mark.browser

SHOT = "MULTIRECON_SCREENSHOT"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium: playwright's own where it is installed, else the system's (CHROMIUM names another)."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))]
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = next((p for p in (own, *candidates) if p and os.path.exists(p)), None)
        if path is None:
            pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    file = write_run(folder)
    record = next(r for r in file.records() if r.task == "disc_x4")
    evil = replace(record, bundle=EVIL, metrics={"t1": {"psnr": 30.0, "ssim": 0.9}})
    file.append(evil)
    save_image(image_file(folder, evil), load_image(image_file(folder, record)))
    values = [parse_claim({**c, "sentence": c["sentence"] + EVIL}) for c in claims()]
    return write_report([folder], folder / "report", claims=values)


@pytest.fixture(scope="module")
def opened(browser, report):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said, asked = [], []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report["html"].as_uri())
    page.wait_for_load_state("networkidle")
    if os.environ.get(SHOT):
        page.screenshot(path=os.environ[SHOT], full_page=True)
    return page, said, asked


def test_nothing_is_said_and_nothing_is_fetched(opened, report):
    _, said, asked = opened
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [report["html"].as_uri()]


def test_tables_and_pictures_can_be_seen(opened):
    page, _, _ = opened
    tables = page.locator("table")
    assert tables.count() > 10
    shown = [t for t in tables.all() if t.is_visible()]
    assert len(shown) > 5
    assert all(box["width"] > 100 and box["height"] > 30 for box in (t.bounding_box() for t in shown))
    images = page.locator("img").all()
    assert len(images) == 5 + 3  # charts, panels
    for image in images:
        assert image.evaluate("i => i.complete && i.naturalWidth > 200 && i.naturalHeight > 100"), image
        assert image.bounding_box()["width"] > 200
        assert len(image.get_attribute("alt")) > 20


def test_nothing_is_wider_than_the_page(opened):
    page, _, _ = opened
    for width in (1280, 600):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1280, "height": 900})


def test_heads_of_tables_stay_in_view(opened):
    page, _, _ = opened
    scroll = page.locator("#claims .scroll")
    scroll.evaluate("e => { e.style.maxHeight = '120px'; e.scrollTop = 80 }")
    top, head = scroll.bounding_box()["y"], scroll.locator("thead th").first.bounding_box()["y"]
    assert abs(top - head) < 3


def test_names_are_text(opened):
    page, _, _ = opened
    assert page.locator("script").count() == 0
    assert page.get_by_text("<script>alert(1)</script>").count() > 3
    assert "\u202e" not in page.content()
    assert page.locator("section h2", has_text="disc_x4").is_visible()


def test_dark_text_on_a_light_page(opened):
    page, _, _ = opened
    page.emulate_media(color_scheme="dark")
    colours = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    light = [sum(map(int, c[c.index("(") + 1 : -1].split(",")[:3])) / 3 for c in colours]
    assert light[0] < 80
    assert light[1] > 240


def test_it_prints_with_everything_open(opened):
    page, _, _ = opened
    closed = page.locator("details:not([open]) table").first
    assert not closed.is_visible()
    page.emulate_media(media="print")
    try:
        assert closed.is_visible()
        assert page.locator("nav").first.is_hidden()
        assert all(e.evaluate("e => getComputedStyle(e).overflow") == "visible" for e in page.locator(".scroll").all())
        assert len(page.pdf()) > 50_000
    finally:
        page.emulate_media(media="screen")
