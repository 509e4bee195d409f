"""The page with pictures, sounds and videos, in a real Chromium with a microphone that it makes up itself."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketgem.llm import LLM
from tests import test_page
from tests.scripted import Script, scripted_llm
from tests.sensing import give_senses, mp4, png, wav
from tests.serving import Running, running
from tests.test_page import CHROMIUM, FLAGS, answers, ask, expect, sync_api

pytestmark = test_page.pytestmark
PLACES = [
    {"box_2d": [140, 73, 812, 427], "label": "house"},
    {"box_2d": [218, 562, 875, 896], "label": "tree"},
    {"point": [687, 260], "label": "door"},
]
SCRIPT = Script({"where": [f"```json\n{json.dumps(PLACES)}\n```"], "hello": ["Hello, you."], "what": ["Two things."]})
MICROPHONE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    llm: LLM = scripted_llm(tmp_path_factory.mktemp("page") / "sees", SCRIPT)
    give_senses(llm)
    with running({"sees": llm}) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS, *MICROPHONE])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, opened by somebody new. Nothing but the server may be asked for, and nothing may fail unseen."""
    context = browser.new_context(viewport={"width": 1180, "height": 860}, permissions=["microphone"])
    page, faults = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda line: faults.append(line.text) if "Security Policy" in line.text else None)
    known = (server.url, "data:", "blob:")
    page.on("request", lambda one: None if one.url.startswith(known) else faults.append(one.url))
    page.goto(server.url)
    expect(page.locator("#attach")).to_be_visible()
    yield page
    context.close()
    assert not faults


def pick(page: Any, *files: tuple[str, str, bytes]) -> None:
    page.set_input_files("#files", [{"name": name, "mimeType": kind, "buffer": data} for name, kind, data in files])


def shot(page: Any, name: str) -> None:
    if folder := os.environ.get("POCKETGEM_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def sent(page: Any) -> list[dict[str, Any]]:
    """Contents of the user's turns in the last request."""
    body: Any = page.evaluate("window.lastBody")
    return [message["content"] for message in json.loads(body)["messages"] if message["role"] == "user"]


def watch(page: Any) -> None:
    page.evaluate(
        "() => { const real = fetch; window.fetch = (where, how) =>"
        " { if (how?.body) window.lastBody = how.body; return real(where, how); }; }"
    )


def picture_file() -> bytes:
    """Something to look at: a house and a tree."""
    import io

    from PIL import Image, ImageDraw

    image = Image.new("RGB", (480, 320), (170, 205, 235))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 250, 480, 320), fill=(95, 150, 80))
    pen.rectangle((50, 110, 190, 260), fill=(205, 120, 90))
    pen.polygon([(35, 110), (120, 45), (205, 110)], fill=(130, 60, 50))
    pen.rectangle((105, 180, 145, 260), fill=(90, 60, 40))
    pen.rectangle((335, 170, 360, 280), fill=(110, 80, 50))
    pen.ellipse((270, 70, 430, 210), fill=(50, 110, 60))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_pictures_are_picked_seen_removed_and_sent_in_order(page: Any) -> None:
    watch(page)
    pick(page, ("a.png", "image/png", png(1)), ("b.png", "image/png", png(2)), ("c.png", "image/png", png(3)))
    expect(page.locator("#tray img")).to_have_count(3)
    page.get_by_role("button", name="Remove b.png").press("Enter")
    expect(page.locator("#tray img")).to_have_count(2)
    ask(page, "what is this")
    expect(answers(page).locator(".body")).to_have_text("Two things.")
    expect(answers(page).locator(".meta")).to_contain_text("120 tokens of image")
    expect(page.locator(".turn.user img")).to_have_count(2)
    expect(page.locator("#tray")).to_be_hidden()
    (content,) = sent(page)
    files = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in content[:2]]
    assert files == [png(1), png(3)]
    assert content[2] == {"type": "text", "text": "what is this"}
    ask(page, "hello again")
    expect(answers(page)).to_have_count(2)
    assert len(sent(page)[0]) == 3, "the first turn lost its pictures"


def test_boxes_and_points_lie_on_the_picture(page: Any) -> None:
    pick(page, ("scene.png", "image/png", picture_file()))
    ask(page, "where is everything")
    layer = answers(page).locator(".over")
    expect(layer.locator("rect")).to_have_count(2)
    expect(layer.locator(".dot")).to_have_count(1)
    expect(layer.locator(".tag")).to_have_text(["house", "tree", "door"])
    image, house = layer.locator("img").bounding_box(), layer.locator("rect").first.bounding_box()
    for name, start, length in (("x", 0.073, "width"), ("y", 0.14, "height")):
        assert abs(house[name] - image[name] - start * image[length]) < 4
    assert abs(house["width"] - 0.354 * image["width"]) < 6
    assert abs(house["height"] - 0.672 * image["height"]) < 6
    dot = layer.locator(".dot").bounding_box()
    assert abs(dot["x"] + dot["width"] / 2 - image["x"] - 0.26 * image["width"]) < 3
    page.evaluate("document.getElementById('thread').scrollTop = 0")
    shot(page, "page-media")
    page.emulate_media(color_scheme="dark")
    shot(page, "page-media-dark")


def test_a_video_and_a_sound_are_sent_and_can_be_played(page: Any) -> None:
    watch(page)
    pick(page, ("clip.mp4", "video/mp4", mp4(0.4)), ("word.wav", "audio/wav", wav()))
    expect(page.locator("#tray video")).to_have_count(1)
    expect(page.locator("#tray audio")).to_have_count(1)
    ask(page, "what is this")
    expect(answers(page).locator(".body")).to_have_text("Two things.")
    kinds = [part["type"] for part in sent(page)[0]]
    assert kinds == ["video_url", "input_audio", "text"]


def test_the_microphone_is_recorded_and_heard(page: Any) -> None:
    watch(page)
    page.keyboard.press("Alt+M")
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(1200)
    page.keyboard.press("Alt+M")
    expect(page.locator("#tray audio")).to_have_count(1)
    expect(page.locator("#record")).to_have_attribute("aria-pressed", "false")
    ask(page, "hello")
    expect(answers(page).locator(".body")).to_have_text("Hello, you.")
    expect(answers(page).locator(".meta")).to_contain_text("tokens of sound")
    assert sent(page)[0][0]["input_audio"]["format"] == "webm"


def test_pictures_are_dropped_and_pasted(page: Any) -> None:
    script = """async ([kind, data]) => {
      const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
      const moved = new DataTransfer();
      moved.items.add(new File([bytes], "x.png", { type: "image/png" }));
      const how = kind === "drop" ? { dataTransfer: moved } : { clipboardData: moved };
      const event = kind === "drop" ? new DragEvent("drop", how) : new ClipboardEvent("paste", how);
      document.dispatchEvent(event);
    }"""
    for number, kind in enumerate(("drop", "paste"), 1):
        page.evaluate(script, [kind, base64.b64encode(png()).decode()])
        expect(page.locator("#tray img")).to_have_count(number)


def test_other_files_are_refused_and_a_reload_says_what_is_gone(page: Any) -> None:
    pick(page, ("a.txt", "text/plain", b"words"))
    expect(page.locator("#trouble")).to_contain_text("a.txt: only pictures, sounds and videos")
    pick(page, ("a.png", "image/png", png(1)))
    expect(page.locator("#trouble")).to_be_hidden()
    ask(page, "hello")
    expect(answers(page).locator(".meta")).to_contain_text("tokens")
    page.reload()
    expect(page.locator(".turn.user .gone")).to_have_text("image: a.png")
    watch(page)
    ask(page, "hello again")
    expect(answers(page)).to_have_count(2)
    assert sent(page)[0][0] == {"type": "text", "text": "(image a.png, no longer here)"}


def test_a_damaged_picture_is_said(page: Any) -> None:
    pick(page, ("a.png", "image/png", b"no picture"))
    ask(page, "hello")
    expect(answers(page).locator(".fault")).to_contain_text("picture")
