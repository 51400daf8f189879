"""Metrics of guards and supervised fine-tuning, and of time and memory."""

from collections.abc import Sequence

from megatron_prime.observability.declared_metrics.rows import Row

GUARDS: Sequence[Row] = (
    ("num_skipped_updates", "count", "Updates of the step that were skipped because they were not finite."),
    (
        "num_skipped_in_all",
        "count",
        "Updates of the whole run that were skipped because they were not finite.",
    ),
    ("spike_alarm", "0 or 1", "1 while one of guards.spike_metrics is far above its recent values."),
    ("reward_alarm", "0 or 1", "1 while rollout/accuracy_sampled is far below its best level."),
    ("entropy_alarm", "0 or 1", "1 while policy/entropy is far below its best level."),
    (
        "truncation_alarm",
        "0 or 1",
        "1 while too many responses are truncated (guards.max_truncated_fraction).",
    ),
    ("ref_kl_alarm", "0 or 1", "1 while the policy is too far from the reference (guards.max_ref_kl)."),
    (
        "gap_alarm",
        "0 or 1",
        "1 while rollout/logprob_gap is too large or has jumped (guards.max_logprob_gap).",
    ),
    (
        "process_alarm",
        "0 or 1",
        "1 while large process rewards prefer wrong responses (guards.min_pair_accuracy).",
    ),
    (
        "chance_alarm",
        "0 or 1",
        "1 while process rewards are large and the PRM orders unseen responses no better than chance.",
    ),
    ("last_step_alarm", "0 or 1", "1 while most responses have their lowest process reward at the end."),
    ("length_alarm", "0 or 1", "1 while the PRM's scores follow the length of equally right responses."),
    ("format_alarm", "0 or 1", "1 while most process reward is on tokens that only format."),
    ("beta_alarm", "0 or 1", "1 while prm/score_limit is below 1."),
    (
        "probe_alarm",
        "0 or 1",
        "1 while the PRM rewards the first wrong steps of prm.probe more than right ones.",
    ),
)
SFT: Sequence[Row] = (
    ("loss", "nats/token", "Loss of the step's demonstrations before the update."),
    ("grad_norm", "1", "Norm of the gradient before clipping."),
    ("lr", "1", "Learning rate of the update."),
    ("num_tokens", "tokens", "Response tokens of the step's demonstrations."),
)
THROUGHPUT: Sequence[Row] = (
    (
        "responses_in_flight",
        "count",
        "Responses that are being sampled, averaged over the time of the step: the sum over the SGLang servers, or "
        "that of rank 0's embedded engine.",
    ),
    (
        "requests_waiting",
        "count",
        "Responses that wait for a place at an engine, averaged over the time of the step.",
    ),
    (
        "verifier_queue",
        "count",
        "Responses that wait for a verifier, averaged over the time of the step, on rank 0.",
    ),
    (
        "groups_aborted",
        "count",
        "Groups that were begun, and not needed when the batch was full; their prompts are the next step's.",
    ),
    (
        "response_tokens_per_s",
        "tokens/s",
        "Response tokens of the training batch, an environment's included, over the time of the step.",
    ),
    (
        "environment_wait_s",
        "s",
        "Mean time that a response of the training batch waited for its environment; others are sampled meanwhile.",
    ),
)
WEIGHT_SYNC: Sequence[Row] = (
    (
        "gib_sent",
        "GiB",
        "Bytes of weights that all ranks sent to servers, repetitions included; whole weights or their changes.",
    ),
    (
        "changed_fraction",
        "fraction",
        "Share of the weights whose bits have changed since the last sync, where servers were sent changes alone; a "
        "slice that was sent whole counts as changed.",
    ),
    ("num_patched", "count", "Servers that were sent changes alone."),
    (
        "num_fallbacks",
        "count",
        "Servers that were sent changes and then needed the whole weights, because that failed.",
    ),
    ("num_repeats", "count", "Attempts that followed a failed one."),
)
TIME: Sequence[Row] = (
    ("step_s", "s", "Time of the whole step, without evaluation and checkpoints."),
    ("weight_sync_s", "s", "Time until every server serves the new weights."),
    ("rollout_s", "s", "Time of sampling, verification and filtering."),
    (
        "rollout_wait_s",
        "s",
        "Time that training waits, at the end of a step, for the batch that is sampled ahead "
        "(rollout.max_staleness = 1; with more it waits in rollout_s).",
    ),
    ("logprobs_s", "s", "Time of the log-probs of the policy before its update, and of the reference."),
    ("prm_s", "s", "Time of scoring and updating the PRM."),
    ("advantage_s", "s", "Time of the advantages."),
    ("policy_s", "s", "Time of the policy's update."),
    (
        "rollout_log_s",
        "s",
        "Time that training waits for sampled responses to be written to run_dir/rollouts.",
    ),
    ("evaluation_s", "s", "Time of the evaluation after the step."),
    ("probe_s", "s", "Time of scoring the solutions of prm.probe after the step."),
    (
        "<phase>_fraction",
        "fraction",
        "Share of a phase in the time of the step; `other` is what no phase covers.",
    ),
    (
        "engine_idle_fraction",
        "fraction",
        "Share of the step in which an engine samples nothing: the mean over the SGLang servers, or that of rank 0's "
        "embedded engine. Servers that share GPUs with training are idle while it uses them.",
    ),
    (
        "environment_idle_fraction",
        "fraction",
        "Share of the step in which no environment replies, on rank 0.",
    ),
    (
        "verifier_idle_fraction",
        "fraction",
        "Share of the step in which a verifier judges no response: the mean over the verifiers, on rank 0.",
    ),
)
MEMORY: Sequence[Row] = (
    ("rss_gib", "GiB", "Memory of the process on rank 0."),
    ("peak_rss_gib", "GiB", "Largest memory of the process on rank 0 so far."),
    ("device_<statistic>_gib", "GiB", "Memory of the device of rank 0, by the statistics of its allocator."),
    (
        "<phase>/<role>_gib",
        "GiB",
        "Most memory of weights, gradients and optimizer states of a role in a phase.",
    ),
    ("<phase>/device_peak_gib", "GiB", "Peak memory of the GPU of rank 0 in a phase."),
    ("host_copies_gib", "GiB", "Host memory that holds offloaded parts."),
)
RUN: Sequence[Row] = (
    ("provenance", "text", "Versions, commit, machine and command of each attempt of the run.", "text"),
    ("config", "text", "The resolved configuration of the run.", "text"),
)
