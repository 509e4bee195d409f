"""The page in a real Chromium, against a real server whose model follows a script."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketgem.llm import LLM
from pocketgem.serve.keys import Keys
from pocketgem.serve.settings import Settings
from tests.cli_models import save_model
from tests.scripted import Script, scripted_llm
from tests.serving import Running, running, wait_for

sync_api = pytest.importorskip("playwright.sync_api", reason='needs pip install "pocketgem[dev]"')
expect = sync_api.expect
expect.set_options(timeout=20_000)  # cores are shared with other tests
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (Debian: apt install chromium)"),
]
# No update, sync or metrics: a test browser asks nobody anything.
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
FLAGS += ["--disable-gpu", "--no-first-run"]
MARKDOWN = """Here is **how**, with `code`:

```python
print("<b>not bold</b>")
```

- one
- two <img src=x onerror="document.title='broken'">
"""
SCRIPT = Script(
    {
        "weather": [
            "<|channel>thought\nI need a tool.\n<channel|><|tool_call>call:weather{days:2}<tool_call|>",
            "It is sunny.<channel|>Sun.",  # the prompt leaves the thought open behind a result
        ],
        "think": ["<|channel>thought\nFirst this, then that.\n<channel|>Done thinking."],
        "markdown": [MARKDOWN],
        "hello": ["Hello, you."],
    }
)
DAYS = {"type": "object", "properties": {"days": {"type": "integer"}}}
TOOL = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": DAYS}}])


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    return scripted_llm(tmp_path_factory.mktemp("page") / "scripted", SCRIPT)


@pytest.fixture(scope="module")
def server(scripted: LLM) -> Iterator[Running]:
    with running({"scripted": scripted}) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page, opened by somebody new. Nothing but the server may be asked for, and nothing may fail unseen."""
    context = browser.new_context(viewport={"width": 1180, "height": 760})
    page, faults = context.new_page(), []
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda one: faults.append(one.url) if not one.url.startswith((server.url, "data:")) else None)
    page.goto(server.url)
    expect(page.locator("#model option")).to_have_count(1)
    yield page
    context.close()
    assert not faults


def ask(page: Any, text: str) -> None:
    page.fill("#composer", text)
    page.press("#composer", "Enter")


def answers(page: Any) -> Any:
    return page.locator(".turn.assistant")


def shot(page: Any, name: str) -> None:
    """A picture for the docs, where POCKETGEM_SHOTS names a folder."""
    if folder := os.environ.get("POCKETGEM_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_an_answer_streams_in_with_its_counts(page: Any) -> None:
    ask(page, "hello")
    expect(answers(page).locator(".body")).to_have_text("Hello, you.")
    expect(answers(page).locator(".meta")).to_contain_text("tokens/s")
    expect(page.locator("#stop")).to_be_hidden()
    ask(page, "hello again")
    expect(answers(page)).to_have_count(2)
    expect(answers(page).last.locator(".meta")).to_contain_text("prompt tokens reused")


def test_markdown_is_drawn_and_brings_no_markup_of_its_own(page: Any) -> None:
    ask(page, "markdown please")
    expect(answers(page).locator("strong")).to_have_text("how")
    expect(answers(page).locator("pre code")).to_have_text('print("<b>not bold</b>")')
    expect(answers(page).locator("li")).to_have_count(2)
    assert answers(page).locator("img, b").count() == 0
    expect(page).to_have_title("pocketgem")
    shot(page, "page-markdown")


def test_a_stopped_answer_ends_at_once_and_frees_the_model(page: Any, server: Running, scripted: LLM) -> None:
    page.evaluate("window.scrollTo(0, 0)")
    scripted.model.script.usual = None  # letters without end
    try:
        ask(page, "go on for ever")
        expect(answers(page).locator(".body")).to_contain_text("abc")
        page.keyboard.press("Escape")
        expect(page.locator("#send")).to_be_visible()
        expect(answers(page).locator(".meta")).to_contain_text("stopped")
        wait_for(server.idle)
    finally:
        scripted.model.script.usual = "I have no script for this."
    text = answers(page).locator(".body").inner_text()
    page.wait_for_timeout(200)
    assert answers(page).locator(".body").inner_text() == text


def test_a_thought_is_folded_and_opens_by_key(page: Any) -> None:
    page.select_option("#thinking", "on")
    ask(page, "think about it")
    expect(answers(page).locator(".body")).to_contain_text("Done thinking.")
    fold = answers(page).locator("details.thought")
    expect(fold.locator("summary")).to_have_text("What it thought")
    expect(fold.locator(".text")).to_be_hidden()
    page.keyboard.press("Alt+T")
    expect(fold.locator(".text")).to_have_text("First this, then that.")


def test_a_tool_call_is_shown_and_goes_on_with_a_result(page: Any) -> None:
    page.keyboard.press("Alt+S")
    page.fill("#tools", "not JSON")
    expect(page.locator("#tools-error")).to_contain_text("not JSON")
    page.fill("#tools", TOOL)
    expect(page.locator("#tools-error")).to_be_hidden()
    shot(page, "page-settings")
    page.click("#settings button[type=submit]")
    page.select_option("#thinking", "on")
    ask(page, "the weather, please")
    call = answers(page).locator(".call")
    expect(call.locator(".name")).to_have_text("weather(…)")
    expect(call.locator("pre")).to_contain_text('"days": 2')
    call.locator("textarea").fill("sunny")
    shot(page, "page-tool")
    call.get_by_role("button", name="Go on with the results").click()
    expect(answers(page).last.locator(".body p")).to_have_text("Sun.")
    expect(page.locator(".turn.tool .body")).to_have_text("sunny")


def test_again_and_edit(page: Any) -> None:
    ask(page, "hello")
    expect(answers(page).locator(".body")).to_have_text("Hello, you.")
    page.keyboard.press("Alt+R")
    expect(answers(page).locator(".body")).to_have_text("Hello, you.")
    expect(answers(page)).to_have_count(1)
    page.focus("#composer")
    page.keyboard.press("ArrowUp")
    expect(page.locator("#composer")).to_have_value("hello")
    expect(page.locator(".turn")).to_have_count(0)


def test_conversations_outlive_a_reload_and_can_be_deleted(page: Any) -> None:
    ask(page, "hello")
    expect(answers(page).locator(".meta")).to_contain_text("tokens")
    page.reload()
    expect(answers(page).locator(".body")).to_have_text("Hello, you.")
    page.keyboard.press("Alt+N")
    expect(answers(page)).to_have_count(0)
    expect(page.locator(".chat")).to_have_count(2)
    page.locator(".chat", has_text="hello").locator(".drop").click(force=True)
    expect(page.locator(".chat", has_text="hello")).to_have_count(0)


def test_dark_light_and_a_narrow_window(page: Any) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(colour)
    page.emulate_media(color_scheme="light")
    assert page.evaluate(colour) != dark
    page.keyboard.press("Alt+S")
    page.select_option("#theme", "dark")
    page.click("#settings button[type=submit]")
    expect(page.locator("body")).to_have_css("background-color", dark)  # a dialog says that it closed a moment later
    ask(page, "think about it")
    expect(answers(page).locator(".body")).to_contain_text("Done thinking.")
    shot(page, "page-dark")
    page.set_viewport_size({"width": 390, "height": 760})
    expect(page.locator("aside")).to_be_hidden()
    page.click("#menu")
    expect(page.locator("aside")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_a_key_is_asked_for_and_a_refusal_is_shown(browser: Any, scripted: LLM, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret-key-of-somebody\n")
    with running({"scripted": scripted}, Settings(port=0, keys=Keys.from_file(keys))) as server:
        context = browser.new_context(http_credentials={"username": "me", "password": "secret-key-of-somebody"})
        page = context.new_page()
        page.goto(server.url)
        expect(page.locator("#model option")).to_have_count(1)
        ask(page, "hello")
        expect(answers(page).locator(".body")).to_have_text("Hello, you.")
        context.close()
        assert server.http.get("/").status_code == 401


def test_a_base_model_continues_texts(browser: Any, tmp_path: Path) -> None:
    llm = LLM.load(save_model(tmp_path / "base", template=None))
    with running({"base": llm}) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#hint")).to_contain_text("base model")
        ask(page, "Once")
        expect(answers(page).locator(".body")).not_to_be_empty()
        page.keyboard.press("Escape")
        expect(answers(page).locator(".meta")).to_contain_text("stopped")
        page.close()


def test_a_server_that_is_gone_is_said(browser: Any, scripted: LLM) -> None:
    with running({"scripted": scripted}) as server:
        page = browser.new_page()
        page.goto(server.url)
        expect(page.locator("#model option")).to_have_count(1)
    ask(page, "hello")
    expect(answers(page).locator(".fault")).to_have_text(re.compile("cannot be reached"))
    page.close()
