"""The folder of pages is complete, private to its run, written in whole files, and follows the run."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from megatron_prime.viewer.site import COLOURS, Site
from tests.support.viewed_runs import REJECTED, row, write_metrics, write_run, write_step


def written(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def data_of(folder, name):
    text = (folder / name).read_text(encoding="utf-8")
    return json.loads(re.fullmatch(r'viewerData\("[\w-]+",(.*)\);\n', text)[1])


def test_a_run_becomes_a_folder_of_pages_that_link_only_into_it(tmp_path):
    write_run(tmp_path / "run")
    site = Site([tmp_path / "run"], tmp_path / "out")
    assert site.update()
    assert site.notices == []
    files = written(tmp_path / "out")
    pages = {name for name in files if name.endswith(".html")}
    assert pages == {
        "index.html",
        "run0/problems.html",
        *(f"run0/step-{step:08d}.html" for step in (4, 8, 12)),
    }
    for name in pages:
        page = tmp_path / "out" / name
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//|/)", text)
        assert not re.search(r"<script(?! src=)|<style| on\w+=|style=", text), (
            "the policy forbids inline code"
        )
        for link in re.findall(r'(?:src|href|value)="([^"#]+\.(?:html|js|css|svg))', text):
            assert (page.parent / link).exists(), (name, link)
    assert {
        step["step"]
        for step in [data_of(tmp_path / "out", f"data/run0/step-{n:08d}/index.js") for n in (4, 8, 12)]
    } == {4, 8, 12}
    assert not any(name.endswith(".tmp") for name in files)
    assert (tmp_path / "out").stat().st_mode & 0o077 == 0, "rollouts may be confidential"


def test_the_problems_page_sorts_by_change_and_links_to_the_groups(tmp_path):
    write_run(tmp_path / "run")
    Site([tmp_path / "run"], tmp_path / "out").update()
    text = (tmp_path / "out" / "run0" / "problems.html").read_text(encoding="utf-8")
    sections = dict(re.findall(r'<section id="(\w+)">(.*?)</section>', text, flags=re.DOTALL))
    assert {name: re.findall(r"</bdi> (\d+)</td>", body) for name, body in sections.items()} == {
        "learned": ["0"],
        "forgotten": ["1"],
        "unstable": ["2"],
    }
    assert 'href="../run0/step-00000008.html#g2"' in sections["unstable"]
    assert "8 problems were logged, 8 of them at several steps, and 3 changed" in text


def test_an_update_writes_what_has_changed_alone(tmp_path):
    run = write_run(tmp_path / "run")
    out = tmp_path / "out"
    site = Site([run], out)
    site.update()
    assert not site.update()
    before = {name: (out / name).stat().st_mtime_ns for name in written(out)}
    generator = np.random.default_rng(0)
    write_step(run, 16, [row("a new response", generator)])
    (run / "rollouts" / "step-00000004.parquet").unlink()
    assert site.update()
    names = written(out)
    assert any(name.startswith("data/run0/step-00000016/") for name in names)
    assert not any("step-00000004" in name for name in names)
    assert all(
        (out / name).stat().st_mtime_ns == before[name]
        for name in names & set(before)
        if name.startswith("data/run0/")
    )
    # Another process, such as the same command on the next day, keeps the data too.
    Site([run], out).update()
    assert (out / "data/run0/step-00000008/index.js").stat().st_mtime_ns == before[
        "data/run0/step-00000008/index.js"
    ]


def test_what_cannot_be_shown_is_said_and_the_rest_is_shown(tmp_path):
    run = write_run(tmp_path / "run")
    damaged = run / "rollouts" / "step-00000008.parquet"
    damaged.write_bytes(damaged.read_bytes()[:1000])
    other = run / "rollouts" / "step-00000012.parquet"
    table = pyarrow.parquet.read_table(other)
    newer = {
        name: value.replace(b'"schema": 1', b'"schema": 9') for name, value in table.schema.metadata.items()
    }
    pyarrow.parquet.write_table(table.replace_schema_metadata(newer), other)
    site = Site([run], tmp_path / "out")
    site.update()
    assert len(site.notices) == 2
    assert "step-00000008.parquet" in site.notices[0]
    assert "step-00000012.parquet cannot be read: it has version 9 of the format" in site.notices[1]
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert index.count('class="notice"') == 3, "both, and that of browsers without scripts"
    assert "step-00000004.html" in index
    assert "step-00000008.html" not in index


def test_curves_without_responses_and_responses_without_curves(tmp_path):
    write_metrics(tmp_path / "curves", num_steps=1)
    (tmp_path / "rows").mkdir()
    write_step(tmp_path / "rows", 1, [row("a b", np.random.default_rng(0))])
    site = Site([tmp_path / "curves", tmp_path / "rows"], tmp_path / "out")
    site.update()
    assert site.notices == [
        "curves: no responses have been logged, so there are curves alone",
        "rows: no step has been logged in metrics.jsonl yet",
    ]
    assert "run1/step-00000001.html" in written(tmp_path / "out")


def test_values_that_are_no_numbers_and_files_that_vanish_are_no_errors(tmp_path):
    """Training writes and removes files while the pages are written, and older versions wrote NaN."""
    line = '{"step": %d, "eval/accuracy": %s, "rollout/accuracy_sampled": %s, "prm/<b>": "x", "time/step_s": %s}\n'
    values = (("NaN", "Infinity", "null"), ("0.5", "-Infinity", "1.0"), ("0.75", "0.25", "1e999"))
    (tmp_path / "metrics.jsonl").write_text("".join(line % (step, *row) for step, row in enumerate(values)))
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step-00000001.parquet").symlink_to(tmp_path / "removed.parquet")
    site = Site([tmp_path], tmp_path / "out")
    assert site.update()
    assert not site.update()
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "held-out accuracy 50.0 % at first, 75.0 % at last" in index
    assert "nan" not in index.lower()
    assert data_of(tmp_path / "out", "data/curves.js")["runs"][0]["values"]["prm/<b>"] == [None] * 3


def test_pages_of_runs_that_are_no_longer_named_are_removed(tmp_path):
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    Site(runs, tmp_path / "out").update()
    assert "run1/problems.html" in written(tmp_path / "out")
    Site(runs[:1], tmp_path / "out").update()
    assert not any("run1" in name for name in written(tmp_path / "out"))


def test_a_step_without_responses_and_one_of_empty_responses(tmp_path):
    generator = np.random.default_rng(0)
    lists = ("response_token_ids", "token_ends", "step_ends", "rollout_logprobs", *REJECTED)
    empty = row("", generator) | {name: [] for name in lists} | {"filter": None}
    write_step(tmp_path, 1, [])
    write_step(tmp_path, 2, [empty, row("", generator, sample=1, reward=None) | REJECTED])
    site = Site([tmp_path], tmp_path / "out")
    site.update()
    assert data_of(tmp_path / "out", "data/run0/step-00000001/index.js")["groups"] == []
    assert data_of(tmp_path / "out", "data/run0/step-00000002/index.js")["rows"]["tokens"] == [0, 1]


def test_a_folder_with_other_files_is_refused(tmp_path):
    write_run(tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.html").write_text("mine")
    with pytest.raises(
        ValueError, match="holds something else than pages of this command: name another --output"
    ):
        Site([tmp_path / "run"], tmp_path / "out")
    with pytest.raises(ValueError, match="holds something else"):
        Site([tmp_path / "run"], tmp_path / "out" / "index.html")
    (tmp_path / "empty").mkdir()
    Site([tmp_path / "run"], tmp_path / "empty").update()
    Site([tmp_path / "run"], tmp_path / "empty").update()


def test_many_logged_steps_are_listed_shortly(tmp_path):
    write_metrics(tmp_path, num_steps=2)
    generator = np.random.default_rng(0)
    for step in range(1, 41):
        write_step(tmp_path, step, [row("a b", generator)])
    Site([tmp_path], tmp_path / "out").update()
    index = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    lead = index.partition("Read what the model wrote")[2].partition("</p>")[0]
    assert re.findall(r">(\d+|…)<|(…)", lead)
    assert lead.count("<a ") == 16
    assert (tmp_path / "out" / "run0" / "step-00000020.html").exists()


def test_the_page_knows_every_quantity_of_its_script():
    script = (Path(__file__).parents[2] / "megatron_prime" / "viewer" / "static" / "tokens.js").read_text(
        encoding="utf-8"
    )
    block = script.partition("const COLOURINGS = {")[2].partition("\n};")[0]
    labels = dict(
        zip(
            re.findall(r"^  (\w+): \{", block, flags=re.MULTILINE),
            re.findall(r'label: "([^"]+)"', block),
            strict=True,
        )
    )
    assert labels == COLOURS
