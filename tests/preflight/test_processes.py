"""Numbers of processes that do not fit the layout or the batch."""

from tests.preflight.workspace import check, faults_of


def test_processes_must_divide_into_the_layout(workspace):
    assert faults_of("parallel.tensor=2", processes=3) == (
        "3 processes are not a multiple of parallel.tensor * pipeline * context = 2 * 1 * 1 = 2",
    )


def test_a_minibatch_must_reach_every_data_parallel_rank(workspace):
    (fault,) = faults_of("policy.num_minibatches=8", processes=4)
    assert "policy.num_minibatches = 8 leaves 2 responses a minibatch for 4 data-parallel ranks" in fault
    sft = ["sft.data=['train.jsonl']", "sft.batch_size=2"]
    assert faults_of(*sft, processes=4, command="sft") == (
        "sft.batch_size = 2 is less than 4 data-parallel ranks",
    )
    check(*sft, processes=2, command="sft")


def test_ranks_to_profile_must_exist(workspace):
    profile = ["profile.steps=[2]", "profile.ranks=[0,1,4]"]
    (fault,) = faults_of(*profile, processes=2)
    assert fault == "profile.ranks names 4, but the ranks of 2 processes are 0 to 1: name some of these"
    assert faults_of(*profile, "sft.data=['train.jsonl']", processes=2, command="sft") == (fault,)
    check(*profile, processes=8)
    check("profile.ranks=[4]")  # captures nothing, so that no rank is missed
