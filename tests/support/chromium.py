"""A headless Chromium of this machine, and pages that fail a test at every error, violation and foreign request."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run"),
)


@contextmanager
def browser() -> Iterator[Any]:
    """Start a browser; without Playwright or Chromium, the tests that need it are skipped."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("MEGATRON_PRIME_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no Chromium is installed (tools/install_test_programs.sh)")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield chromium
        chromium.close()


@contextmanager
def watched_page(chromium: Any, allowed: str, **settings: Any) -> Iterator[Any]:
    """Open an empty page whose requests must all begin with `allowed`, and which must raise no error at all.

    Args:
        chromium: A browser.
        allowed: Start of every address that the page may ask for.
        settings: Of the browser's context, such as viewport and color_scheme.
    """
    context = chromium.new_context(**settings)
    page = context.new_page()
    faults: list[str] = []
    page.on(
        "console",
        lambda message: faults.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request", lambda request: None if request.url.startswith(allowed) else faults.append(request.url)
    )
    # A page that is left before it has loaded everything aborts its requests.
    page.on(
        "requestfailed",
        lambda request: (
            None if request.failure == "net::ERR_ABORTED" else faults.append(f"failed: {request.url}")
        ),
    )
    page.set_default_timeout(20_000)
    try:
        yield page
        assert not faults, faults
    finally:
        context.close()


def folder_address(folder: Path) -> str:
    """Return the address of a folder, with a slash at its end."""
    return f"{folder.resolve().as_uri()}/"
