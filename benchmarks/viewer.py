"""Measure the viewer on a large logged step: `python -m benchmarks.viewer`, a minute.

The step has 200 groups of 4 responses with 4,096 tokens each. A headless Chromium opens its page as a file; the result
says how much the pages take on disk, how long until the first group can be read, and how long the page stands still
while it scrolls, changes its colours and searches every response. Other jobs of the machine lengthen these times, but
not the CPU seconds of the page's process, which stand beside them.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from megatron_prime.viewer.site import Site
from tests.support.chromium import browser, folder_address
from tests.support.viewed_runs import SENTENCES, row, tokens_of, write_step

TOKENS = 4096
OPENINGS = 5


def write_large_step(folder: Path, num_groups: int, tokens: int) -> Path:
    """Write a run with one logged step, and return the file of the log."""
    generator = np.random.default_rng(0)
    text = "".join(SENTENCES) + "\n"
    words = tokens_of(text * (tokens // len(tokens_of(text)) + 1))
    long = "".join(words[: tokens - 1])
    rows = [
        row(long.replace("Ada", f"Ada{group}"), generator, group, sample, float((group + sample) % 2))
        for group in range(num_groups)
        for sample in range(4)
    ]
    return write_step(folder, 1, rows)


def measure(folder: Path, num_groups: int = 200, tokens: int = TOKENS) -> dict[str, float]:
    """Return sizes in MB and times in seconds."""
    log = write_large_step(folder / "run", num_groups, tokens)
    started = time.monotonic()
    Site([folder / "run"], folder / "view").update()
    result = {"writing the pages, s": time.monotonic() - started, "rollout log, MB": log.stat().st_size / 1e6}
    files = [path for path in (folder / "view").rglob("*") if path.is_file()]
    result["pages, MB"] = sum(path.stat().st_size for path in files) / 1e6
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1500, "height": 1000})
        cpu = _CpuSeconds(chromium)
        times, cpu_times = [], []
        for _ in range(OPENINGS):
            page.goto("about:blank")
            started, cpu_started = time.monotonic(), cpu()
            page.goto(f"{folder_address(folder / 'view')}run0/step-00000001.html")
            page.wait_for_selector("#g0 .response .text span")
            times.append(time.monotonic() - started)
            page.wait_for_timeout(500)
            cpu_times.append(cpu() - cpu_started)
        result["open until the first group is drawn, s: the first time"] = times[0]
        result["open until the first group is drawn, s: median"] = statistics.median(times)
        result["open: CPU seconds of the page, median"] = statistics.median(cpu_times)
        result |= _stalls(page, cpu)
        result["largest JavaScript heap, MB"] = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        page.close()
    return result


class _CpuSeconds:
    """CPU seconds that the processes of pages have used so far; a page that is opened anew may get another one."""

    def __init__(self, chromium: Any) -> None:
        self._session = chromium.new_browser_cdp_session()

    def __call__(self) -> float:
        processes = self._session.send("SystemInfo.getProcessInfo")["processInfo"]
        return sum(process["cpuTime"] for process in processes if process["type"] == "renderer")


def _stalls(page: Any, cpu: _CpuSeconds) -> dict[str, float]:
    """Return how long the page does not answer, at most, in each of the things that readers do."""
    page.evaluate(
        "() => { window.longest = 0; let last = performance.now(); const tick = () => { const now = performance.now(); "
        "window.longest = Math.max(window.longest, now - last); last = now; requestAnimationFrame(tick); }; tick(); }"
    )
    actions = {
        "scrolling to another group": lambda: page.evaluate("location.hash = '#g100'"),
        "changing the colours": lambda: page.keyboard.press("2"),
        "searching all responses": lambda: page.fill("#search", "ada7"),
    }
    result = {}
    for name, act in actions.items():
        page.evaluate("window.longest = 0")
        started, cpu_started = time.monotonic(), cpu()
        act()
        page.wait_for_timeout(100)
        while "searching" in page.locator("#count").inner_text() or page.locator("#count").inner_text() == "":
            page.wait_for_timeout(50)
        page.wait_for_timeout(500)
        result[f"{name}: CPU seconds of the page"] = cpu() - cpu_started
        result[f"{name}: longest pause, s"] = page.evaluate("window.longest") / 1e3
        if "search" in name:
            result[f"{name}: until the result, s"] = time.monotonic() - started - 0.5
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options.groups)
    print("| measure | value |\n| --- | --- |")
    for name, value in result.items():
        print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
