"""Errors of the log-prob kernels against float64 and times relative to a copy, by `benchmarks.logprob_kernel`."""

from collections.abc import Iterator

from tools.gpu_checks.lines import Line, Setting, info, judged

GOAL = 1.3
ERROR_BOUNDS = {"tile": 1e-4, "layer": 5e-2}
"""Bounds in nats; the layer's includes the rounding of its logits to bf16."""


def logprob_kernels(setting: Setting) -> Iterator[Line]:
    """Measure every implementation that runs here; the goal applies to this project's kernels on a tile."""
    from benchmarks.logprob_kernel import Sizes, measure

    sizes = Sizes(32, 512, 16, 16) if setting.is_tiny else None
    rows = measure(setting.device, "bf16", sizes, repeats=2 if setting.is_tiny else 20)
    ours = {level: next(row.method for row in rows if row.level == level) for level in ("tile", "layer")}
    for row in rows:
        what = f"{row.level}, {row.method}, {row.step}"
        is_ours = row.method == ours[row.level]
        if row.ratio is None:
            why_skipped = row.note or "did not run"
            yield Line(what, "fail" if is_ours and setting.is_cuda else "skipped", note=why_skipped)
            continue
        note = f"{1e3 * row.seconds:.3f} ms"  # type: ignore[operator]
        if is_ours and row.level == "tile":
            goal = f"<= {GOAL} of the floor"
            yield judged(what, row.ratio, "of the floor", goal, row.ratio <= GOAL, note, setting.why_no_speed)
        else:
            yield info(what, row.ratio, "of the floor", note)
    errors = {
        (row.level, row.method): row.error
        for row in rows
        if row.method.startswith("ours") and row.error is not None
    }
    for (level, method), error in errors.items():
        bound = ERROR_BOUNDS[level]
        yield judged(
            f"{level}, {method}: error against float64", error, "nats", f"<= {bound}", error <= bound
        )
