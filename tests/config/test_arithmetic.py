from megatron_prime.config import load_config
from megatron_prime.config.arithmetic import BatchArithmetic

OVERRIDES = [
    "parallel.tensor=2",
    "parallel.pipeline=2",
    "trainer.num_steps=592",
    "trainer.prompts_per_step=256",
    "policy.num_minibatches=4",
    "policy.num_epochs=2",
]


def test_the_paper_run_on_eight_processes(minimal_toml):
    arithmetic = BatchArithmetic.of(load_config(minimal_toml, OVERRIDES), num_processes=8)
    assert arithmetic.data == 2
    assert arithmetic.responses_per_step == 1024
    assert arithmetic.num_rollouts == 1024 * 592
    policy, prm = arithmetic.roles
    assert (policy.responses_per_minibatch, policy.updates_per_step) == (256, 8)
    assert (prm.name, prm.responses_per_minibatch, prm.updates_per_step) == ("prm", 1024, 1)


def test_the_summary_contains_every_number(minimal_toml):
    assert BatchArithmetic.of(load_config(minimal_toml, OVERRIDES), num_processes=8).lines() == [
        "processes   8 = tensor 2 x pipeline 2 x context 1 x data 2",
        "batch       256 prompts x 4 responses = 1024 responses per step",
        "policy      4 minibatches of 256 responses x 2 epochs = 8 updates per step, 4736 in the run",
        "prm         1 minibatches of 1024 responses = 1 updates per step, 592 in the run",
        "microbatch  up to 16384 packed tokens per process; one sequence has up to 4096",
        "run         592 steps x 1024 = 606208 responses trained on (filtered prompts come on top)",
    ]


def test_a_prm_that_does_not_train_has_no_updates(minimal_toml):
    for override in ("prm.enabled=false", "prm.update_order=none"):
        arithmetic = BatchArithmetic.of(load_config(minimal_toml, [override]), num_processes=1)
        assert [role.name for role in arithmetic.roles] == ["policy"]


def test_processes_that_do_not_divide_give_no_data_parallel_size(minimal_toml):
    assert BatchArithmetic.of(load_config(minimal_toml, ["parallel.tensor=2"]), num_processes=3).data == 0
