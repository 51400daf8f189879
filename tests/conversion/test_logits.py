"""The comparison accepts equal models and refuses a model with two tensors swapped."""

from tests.conversion import logits_worker as conversion_logits_worker
from tests.support.distributed_runner import run_distributed


def test_equal_models_agree_and_swapped_tensors_are_detected(hf_models, converted):
    (report,) = run_distributed(conversion_logits_worker.compare, 1, hf_models[0], converted)
    assert all(difference < 1e-5 for difference in report["same"].values()), report
    assert len(report["same"]) == 2
    assert "are different models: log-probs differ by up to" in report["other"]
