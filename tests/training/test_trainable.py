"""Updates equal plain HF with torch.optim.AdamW in every layout; updates that are not finite are not applied."""

import copy
import json
import math

import pytest
import torch

from tests.support import layout_worker
from tests.support.distributed_runner import run_distributed
from tests.support.layout_worker import hf_weights, layouts_of, whole_tensors
from tests.support.tiny_models import DEEP, MOE_BUILDERS, SHALLOW, save_tiny_model
from tests.support.training_batches import PLAIN_LOSSES, plain_load_balance_loss, ragged_batch, score_with_hf
from tests.training import training_worker

DENSE_LAYOUTS = (
    "one",
    "tp2",
    "tp2+sp",
    "pp2",
    "pp2 vpp2",
    "dp2",
    "cp2",
    "tp2 pp2",
    "tp2 dp2",
    "pp2 dp2",
    "tp2+sp pp2",
    "pp2 uneven",
)
MOE_LAYOUTS = (
    "one",
    "pp2 uneven",
    "tp2+sp",
    "pp2 vpp2",
    "dp2",
    "ep2",
    "etp2",
    "tp2+sp ep2",
    "tp2+sp etp2",
    "cp2 ep2",
    "ep2 etp2",
    "ep2 dp2",
    "pp2 ep2",
    "tp2+sp ep2 etp2",
)
DEEP_LAYOUTS = ("pp2 uneven", "pp2", "pp2 vpp2", "pp2 ep2")
"""Layouts with several layers in a stage or four parts, which train models of four layers instead of two."""
OVERLAPPED_LAYOUTS = ("one", "tp2", "pp2 vpp2", "dp2", "cp2", "pp2", "tp2 dp2", "pp2 dp2")
OVERLAPPED_MOE_LAYOUTS = ("dp2", "ep2", "tp2+sp ep2", "ep2 dp2")
NAN_MODEL = "qwen2 tied"
LAYOUTS_THAT_MEET_NAN = [name for name in DENSE_LAYOUTS if layout_worker.LAYOUTS[name][0] < 4]
MINIBATCHES = [[0, 1, 2, 3, 4, 5, 6], [1, 3, 4], [0, 2, 5, 6]]
NUM_STEPS = 4
OPTIMIZER = {"lr": 1e-3, "adam_eps": 1e-6, "adam_beta2": 0.95, "lr_decay": "linear", "min_lr": 1e-4}
JOBS_OF_FOUR_LAYERS = {
    "policy": {"model": "qwen2 tied", "weight_decay": 0.0, "grad_clip": 0.3},
    "prm": {"model": "qwen3", "weight_decay": 0.0, "grad_clip": 1.0},
    "prm with decay, without clipping": {"model": "llama", "weight_decay": 0.1, "grad_clip": 0.0},
    "policy of experts": {"model": "qwen3 moe", "weight_decay": 0.1, "grad_clip": 0.3},
    "prm of experts": {"model": "mixtral", "weight_decay": 0.0, "grad_clip": 1.0},
    "policy of balanced experts": {
        "model": "mixtral",
        "weight_decay": 0.0,
        "grad_clip": 0.3,
        "load_balance_coef": 0.2,
    },
    "policy with overlap": {"model": "qwen2 tied", "weight_decay": 0.0, "grad_clip": 0.3, "overlap": True},
    "prm with overlap, of experts": {
        "model": "mixtral",
        "weight_decay": 0.0,
        "grad_clip": 1.0,
        "overlap": True,
    },
}
JOBS = JOBS_OF_FOUR_LAYERS | {
    f"{name} of two layers": job | {"model": SHALLOW + job["model"]}
    for name, job in JOBS_OF_FOUR_LAYERS.items()
}


def layouts_for(job):
    if job["model"].startswith(DEEP):
        return ["one", "pp2 vpp2 uneven"]
    is_shallow = job["model"].startswith(SHALLOW)
    is_overlapped, is_moe = job.get("overlap", False), job["model"].removeprefix(SHALLOW) in MOE_BUILDERS
    if is_overlapped:
        layouts = OVERLAPPED_MOE_LAYOUTS if is_moe else OVERLAPPED_LAYOUTS
    else:
        layouts = MOE_LAYOUTS if is_moe else DENSE_LAYOUTS
    deep = [layout for layout in layouts if layout in DEEP_LAYOUTS]
    # One process trains both, to compare the other layouts with it.
    return [layout for layout in layouts if layout not in deep] if is_shallow else ["one", *deep] * bool(deep)


JOBS["policy of six layers"] = {"model": "deep qwen2 tied", "weight_decay": 0.0, "grad_clip": 0.3}
CASES = [(layout, job) for job, settings in JOBS.items() for layout in layouts_for(settings)]
"""Pairs of a layout and the job that it trains."""
TOLERANCE = 1e-5
SCHEDULE_STEPS = 8
SCHEDULES = {
    "constant": {},
    "constant after warm-up": {"lr_warmup_steps": 3},
    "linear": {"lr_decay": "linear", "min_lr": 2e-4},
    "cosine after warm-up": {"lr_decay": "cosine", "lr_warmup_steps": 2, "min_lr": 1e-4},
}


def kind_of(job):
    return job.split()[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    root = tmp_path_factory.mktemp("trainable")
    names = {job["model"] for job in JOBS.values()}
    return {name: (root / name, save_tiny_model(name, root / name)) for name in names}


@pytest.fixture(scope="module")
def batches(models):
    return {name: ragged_batch(model) for name, (_, model) in models.items()}


@pytest.fixture(scope="module")
def reports_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def results(models, batches, reports_folder):
    """Return the reports of the ranks of each layout, by job."""
    jobs = {
        name: {
            "folder": models[job["model"]][0],
            "kind": kind_of(name),
            "batch": batches[job["model"]],
            "minibatches": MINIBATCHES,
            "layouts": [layout for layout, of_job in CASES if of_job == name],
            "optimizer": OPTIMIZER | {key: value for key, value in job.items() if key != "model"},
            "num_steps": NUM_STEPS,
        }
        for name, job in JOBS.items()
    }
    nan_models = {}
    for layout in LAYOUTS_THAT_MEET_NAN:
        name = NAN_MODEL if layout in DEEP_LAYOUTS else SHALLOW + NAN_MODEL
        nan_models[layout] = models[name][0], batches[name]
    reports = {"train": {}, "nan": {}}
    for num_processes, layouts in layouts_of(dict(CASES)).items():
        by_rank = run_distributed(
            training_worker.train_and_meet_nan,
            num_processes,
            tuple(layouts),
            jobs,
            nan_models,
            MINIBATCHES[0],
            SCHEDULES,
            SCHEDULE_STEPS,
            reports_folder,
        )
        for part in ("train", "nan"):
            reports[part] |= {key: [of_rank[part][key] for of_rank in by_rank] for key in by_rank[0][part]}
        reports["schedules"] = reports.get("schedules") or by_rank[0]["schedules"]
    return reports


@pytest.fixture(scope="module")
def plain(models, batches):
    """Return {job: (weights, losses, gradient norms)} of plain HF and torch."""
    return {
        name: _train_plainly(
            copy.deepcopy(models[job["model"]][1]), batches[job["model"]], kind_of(name), job
        )
        for name, job in JOBS.items()
    }


def _train_plainly(model, batch, kind, job):
    parameters = list(model.parameters())
    # Megatron's rule: vectors (norms and biases) do not decay.
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": job["weight_decay"]},
            {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, OPTIMIZER["adam_beta2"]),
        eps=OPTIMIZER["adam_eps"],
    )
    losses, norms = [], []
    for step, rows in enumerate(MINIBATCHES):
        logprobs_BT, entropy_BT = score_with_hf(model, batch["sequences"], batch["mask"].shape[1])
        loss = PLAIN_LOSSES[kind](batch, rows, logprobs_BT, entropy_BT)
        balance = 0.0
        if coef := job.get("load_balance_coef"):
            balance = coef * plain_load_balance_loss(model, batch["sequences"], rows)
        optimizer.zero_grad()
        (loss + balance).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, job["grad_clip"] or math.inf).item())
        for group in optimizer.param_groups:
            span = OPTIMIZER["lr"] - OPTIMIZER["min_lr"]
            group["lr"] = OPTIMIZER["min_lr"] + span * (1 - step / NUM_STEPS)
        optimizer.step()
        losses.append(loss.item())
    return hf_weights(model), losses, norms


def weights_of(results, layout, job, like):
    return whole_tensors([of_rank["weights"] for of_rank in results["train"][layout, job]], like)


def largest_difference(weights, others):
    return max((weights[name] - other).abs().max().item() for name, other in others.items())


@pytest.mark.parametrize(("layout", "job"), CASES)
def test_three_updates_equal_hf_and_torch(job, layout, results, plain, models):
    start = hf_weights(models[JOBS[job]["model"]][1])
    expected = plain[job][0]
    assert largest_difference(expected, start) > 1e-3, "the updates must be large compared with the tolerance"
    assert largest_difference(weights_of(results, layout, job, expected), expected) < TOLERANCE


@pytest.mark.parametrize(
    ("layout", "job"), [case for case in CASES if case[0] != "one" and ("one", case[1]) in CASES]
)
def test_three_updates_equal_one_process(job, layout, results, plain):
    expected = weights_of(results, "one", job, plain[job][0])
    assert largest_difference(weights_of(results, layout, job, expected), expected) < TOLERANCE


@pytest.mark.parametrize(("layout", "job"), CASES)
def test_gradient_norms_and_losses_equal_hf_on_every_rank(job, layout, results, plain):
    _, losses, norms = plain[job]
    clip = JOBS[job]["grad_clip"]
    assert not clip or max(norms) > clip, "clipping must be active"
    for of_rank in results["train"][layout, job]:
        assert [metrics["grad_norm"] for metrics in of_rank["metrics"]] == pytest.approx(norms, rel=1e-4)
        for metrics, loss in zip(of_rank["metrics"], losses, strict=True):
            assert _loss_of(kind_of(job), metrics) == pytest.approx(loss, abs=1e-5)


def _loss_of(kind, metrics):
    if kind == "prm":
        return metrics["loss"]
    return metrics["policy_loss"] - 0.02 * metrics["entropy"] + 0.1 * metrics["ref_kl"]


@pytest.mark.parametrize(("layout", "job"), CASES)
def test_every_rank_reports_the_same(job, layout, results):
    first, *others = results["train"][layout, job]
    for other in others:
        assert other["metrics"] == first["metrics"]
        assert other["lr"] == first["lr"]
        for mine, theirs in zip(other["logprobs"], first["logprobs"], strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize("layout", DENSE_LAYOUTS)
def test_an_update_returns_the_scores_of_its_rows_before_the_update(layout, results, models, batches):
    job = "prm" if layout in DEEP_LAYOUTS else "prm of two layers"
    batch, model = batches[JOBS[job]["model"]], models[JOBS[job]["model"]][1]
    with torch.no_grad():
        before_BT, _ = score_with_hf(model, batch["sequences"], batch["mask"].shape[1])
    logprobs = results["train"][layout, job][0]["logprobs"]
    torch.testing.assert_close(logprobs[0], before_BT, rtol=0, atol=1e-5)
    for rows, scores_BT in zip(MINIBATCHES, logprobs, strict=True):
        others = [row for row in range(len(before_BT)) if row not in rows]
        assert not scores_BT[others].any()


@pytest.mark.parametrize("layout", LAYOUTS_THAT_MEET_NAN)
def test_an_update_that_is_not_finite_changes_no_state_on_any_rank(layout, results):
    for of_rank in results["nan"][layout]:
        assert of_rank["weights unchanged"]
        assert of_rank["moments unchanged"]
        assert of_rank["moved"]
        assert of_rank["recovers"], "an update after the skipped one equals that of a run without it"
        for broken in training_worker.BROKEN_LOSSES:
            assert not math.isfinite(of_rank[broken]["grad_norm"])


@pytest.mark.parametrize("layout", LAYOUTS_THAT_MEET_NAN)
def test_without_guards_the_first_update_that_is_not_finite_is_an_error_on_every_rank(layout, results):
    for of_rank in results["nan"][layout]:
        assert "the policy's update is not finite" in of_rank["message"]
        assert "policy.lr" in of_rank["message"]


@pytest.mark.parametrize("layout", LAYOUTS_THAT_MEET_NAN)
def test_guards_count_skipped_updates_and_stop_equally_on_every_rank(layout, results, reports_folder):
    for of_rank in results["nan"][layout]:
        assert of_rank["counted"]["num_skipped_updates"] == of_rank["counted"]["num_skipped_in_all"] == 2
        first, second = of_rank["warnings"]
        assert "step 7, minibatch 1: the policy's update is skipped" in first
        assert "the loss in microbatches with rows 0" in first
        assert "step 7, minibatch 2" in second and "the loss" not in second and "gradients of" in second
        assert of_rank["stops"][:2] == [None, None], "a good update in between resets the count"
        assert "step 8, minibatch 3: 3 updates of the policy in a row" in of_rank["stops"][2]
        assert of_rank["stops"] == results["nan"][layout][0]["stops"]
    (path,) = (reports_folder / layout / "reports").iterdir()
    report = json.loads(path.read_text())
    assert (report["role"], report["step"], report["minibatch"]) == ("policy", 8, 3)
    assert report["recent_metrics"] == [{"step": 7, "policy/grad_norm": None}]
    [parameter] = report["by_rank"][0]["parameters"]  # with a virtual pipeline, names begin with the chunk
    assert parameter.removeprefix("0.") == "embedding.word_embeddings.weight"
    assert any(of_rank["num_gradients"] for of_rank in report["by_rank"])
    assert any(0 in of_rank["loss_rows"] for of_rank in report["by_rank"])


def test_learning_rates_follow_the_schedule(results):
    def warm(step, warmup):
        return 1e-3 * min(1.0, step / warmup)

    def fraction(step, warmup):
        return (step - warmup) / (SCHEDULE_STEPS - warmup)

    steps = range(SCHEDULE_STEPS)
    expected = {
        "constant": [1e-3] * SCHEDULE_STEPS,
        "constant after warm-up": [warm(step, 3) for step in steps],
        "linear": [2e-4 + 8e-4 * (1 - step / SCHEDULE_STEPS) for step in steps],
        "cosine after warm-up": [
            warm(step, 2) if step <= 2 else 1e-4 + 9e-4 * (1 + math.cos(math.pi * fraction(step, 2))) / 2
            for step in steps
        ],
    }
    for name, rates in expected.items():
        assert results["schedules"][name] == pytest.approx(rates, rel=1e-12), name


def test_the_separate_bucket_of_a_tied_embedding_keeps_optimizer_moments_aligned():
    [(num_buckets, moments)] = run_distributed(training_worker.moments_of_buckets, 1)
    assert num_buckets == 2 and len(moments) == 6
    for saved, held in moments:
        assert saved == held and any(saved)
