"""Functions that one rank runs in tests/training/test_offline_prm.py."""

from megatron_prime.config.tables.prm import PRMConfig
from megatron_prime.data.ordering import ResumableOrder
from megatron_prime.training.offline_prm import HeldOutResponses, OfflinePRMTrainer
from megatron_prime.training.prm_phase import PRMPhase
from megatron_prime.training.trainable import RoleSpec, Scorer, Trainable
from tests.support.layout_worker import topology_of
from tests.support.training_batches import BETA
from tests.training.training_worker import SETTINGS


def train(layouts, folder, groups, cases, num_steps):
    """Train on the groups in each layout and with each objective; return metrics, and log-probs of both models."""
    return {
        (layout, name): _train(topology_of(layout), folder, groups, options, num_steps)
        for layout in layouts
        for name, options in cases.items()
    }


def _train(topology, folder, groups, options, num_steps):
    config = PRMConfig(**{"lr": 1e-3, "adam_eps": 1e-6, "beta": BETA} | options)
    prm = Trainable(RoleSpec("prm", folder, SETTINGS), topology, config, num_steps)
    reference = Scorer(RoleSpec("reference", folder, SETTINGS), topology)
    held_out = HeldOutResponses(prm, reference, config, groups, groups_at_once=2)
    stream = ResumableOrder(groups, "", seed=1, shuffle=True)
    trainer = OfflinePRMTrainer(PRMPhase(prm, config, seed=3), reference, stream, prompts_per_step=2)
    report = {"held out": [held_out.measure()], "steps": []}
    for _ in range(num_steps):
        report["steps"].append(dict(trainer.step()))
        report["held out"].append(held_out.measure())
    sequences = [(rollout.prompt.token_ids, rollout.response_ids) for group in groups for rollout in group]
    report["done"] = trainer.step_index
    report["logprobs"] = [role.score(sequences).logprobs_BT for role in (prm, reference)]
    return report
