"""Take the viewer's screenshots of the documentation: `python -m tools.viewer_screenshots runs/quickstart/prime`.

Writes docs/images/viewer-curves.png and docs/images/viewer-tokens.png, the latter of the last logged step. Needs
Chromium and the extra `dev`.
"""

import argparse
import tempfile
from pathlib import Path

from megatron_prime.viewer.site import Site
from tests.support.chromium import browser, folder_address

IMAGES = Path(__file__).parents[1] / "docs" / "images"


def main() -> None:
    """Take the screenshots."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="run_dir of a run")
    parser.add_argument("--step", type=int, help="logged step; default the last one")
    parser.add_argument("--output", type=Path, default=IMAGES)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        Site([options.run], Path(folder)).update()
        steps = sorted(int(path.stem.split("-")[1]) for path in Path(folder).glob("run0/step-*.html"))
        page = chromium.new_page(viewport={"width": 1320, "height": 860})
        page.goto(f"{folder_address(Path(folder))}index.html")
        page.wait_for_selector("figure[data-panel=accuracy] svg")
        page.screenshot(path=options.output / "viewer-curves.png")
        page.goto(f"{folder_address(Path(folder))}run0/step-{options.step or steps[-1]:08d}.html")
        page.wait_for_selector("#g0 .text span")
        page.locator("#g0 .text span").nth(2).hover()
        page.screenshot(path=options.output / "viewer-tokens.png")


if __name__ == "__main__":
    main()
