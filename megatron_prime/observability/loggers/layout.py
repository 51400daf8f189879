"""The page CUSTOM SCALARS of TensorBoard: the few charts that answer whether a run goes well, and more to look closer.

A tag of a chart is a regular expression, so that a chart shows the benchmarks, sources and alarms that a run has.
"""

# protobuf creates its classes at import time, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Mapping, Sequence

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import metadata
from tensorboard.plugins.custom_scalar.layout_pb2 import (
    Category,
    Chart,
    Layout,
    MultilineChartContent,
)
from tensorboard.util.tensor_util import make_tensor_proto

CHARTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "Overview": {
        "accuracy, held-out and benchmarks (fraction)": (r"eval/accuracy", r"eval/[^/]+/accuracy"),
        "reward: accuracy when sampled (fraction)": (r"rollout/accuracy_(sampled|batch)",),
        "PRM: accuracy, 0.5 is chance (fraction)": (r"prm/(pair|sign)_accuracy",),
        "gap of trainer and engine (nats/token)": (r"rollout/logprob_gap",),
        "time by phase (s)": (r"time/(weight_sync|rollout|logprobs|prm|advantage|policy|step)_s",),
        "alarms (1 while raised)": (r"guards/\w+_alarm",),
    },
    "Evaluation": {
        "held-out accuracy and its interval (fraction)": (r"eval/accuracy(_ci_(low|high))?",),
        "pass@k (fraction)": (r"eval/([^/]+/)?pass_at_\d+",),
        "truncated (fraction)": (r"eval/([^/]+/)?truncated_fraction",),
        "length of the responses (tokens)": (r"eval/([^/]+/)?mean_response_tokens",),
    },
    "Policy": {
        "KL from the reference (nats/token)": (r"policy/ref_kl",),
        "entropy (nats/token)": (r"policy/entropy",),
        "KL of a step: size of its update (nats/token)": (r"policy/(approx|rollout)_kl",),
        "clipped tokens (fraction)": (r"policy/\w*clip_fraction",),
        "gradient norm": (r"policy/grad_norm",),
        "learning rate": (r"policy/lr", r"prm/lr"),
    },
    "PRM": {
        "cross-entropy, 0.693 is chance (nats)": (r"prm/ce", r"prm/loss"),
        "process rewards (nats/token)": (r"prm/process_reward_(mean|max_abs)",),
        "share in the advantages (fraction)": (r"advantage/process_share",),
        "gradient norm": (r"prm/grad_norm",),
    },
    "Rollouts": {
        "groups by result of the filter": (r"rollout/num_groups_\w+",),
        "prompts always right or wrong (fraction)": (r"prompts/always_\w+_fraction",),
        "length of the responses (tokens)": (r"rollout/mean_response_tokens",),
        "truncated (fraction)": (r"rollout/truncated_fraction",),
        "accuracy by data source (fraction)": (r"rollout/accuracy_by_source/.+",),
        "largest gap of trainer and engine (nats/token)": (r"rollout/logprob_gap_max",),
    },
    "Machine": {
        "response tokens per second": (r"throughput/response_tokens_per_s",),
        "memory of the process on rank 0 (GiB)": (r"memory/(peak_)?rss_gib",),
        "peak memory of the GPU by phase (GiB)": (r"memory/[^/]+/device_peak_gib",),
        "skipped updates": (r"guards/num_skipped_\w+",),
    },
}
"""Title of a category -> title of a chart -> its tags; the first category is open."""
OFFLINE_CHARTS: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = {
    "sft": {
        "Supervised fine-tuning": {
            "loss (nats/token)": (r"sft/loss",),
            "held-out loss (nats/token)": (r"eval/loss",),
            "gradient norm": (r"sft/grad_norm",),
            "learning rate": (r"sft/lr",),
            "time of a step (s)": (r"time/step_s",),
        }
    },
    "train_prm": {
        "PRM on saved responses": {
            "accuracy, held-out, 0.5 is chance (fraction)": (r"eval/prm_(pair|sign)_accuracy",),
            "accuracy before the update, 0.5 is chance (fraction)": (r"prm/(pair|sign)_accuracy",),
            "cross-entropy, 0.693 is chance (nats)": (r"prm/ce", r"eval/prm_ce"),
            "gradient norm": (r"prm/grad_norm",),
            "learning rate": (r"prm/lr",),
            "time of a step (s)": (r"time/step_s",),
        }
    },
}
"""Command that samples nothing -> its charts, under a title of their own: TensorBoard joins the layouts of its runs."""


def layout_value(command: str = "train") -> Summary.Value:
    """Return the layout as the summary that TensorBoard looks for."""
    layout = Layout(
        category=[
            Category(
                title=title,
                closed=number > 0,
                # TensorBoard looks for a match at the start of a tag: `$` keeps longer tags out.
                chart=[
                    Chart(title=name, multiline=MultilineChartContent(tag=[f"{tag}$" for tag in tags]))
                    for name, tags in charts.items()
                ],
            )
            for number, (title, charts) in enumerate(OFFLINE_CHARTS.get(command, CHARTS).items())
        ]
    )
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
