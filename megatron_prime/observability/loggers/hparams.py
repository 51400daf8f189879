"""The settings that TensorBoard's page HPARAMS compares between runs, with the accuracies that they reached."""

# protobuf creates its classes at import time, where a type checker cannot see them.
# pyright: reportAttributeAccessIssue=false

import time
from collections.abc import Iterator

from google.protobuf.struct_pb2 import Value
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import (
    DATA_TYPE_BOOL,
    DATA_TYPE_FLOAT64,
    DATA_TYPE_STRING,
    Experiment,
    HParamInfo,
    MetricInfo,
    MetricName,
)
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionStartInfo,
)

from megatron_prime.observability.loggers.protocol import RunInfo, flat_settings

SETTINGS = (
    *("model.path", "seed", "trainer.num_steps", "trainer.prompts_per_step"),
    *("rollout.group_size", "rollout.max_response_tokens", "rollout.temperature"),
    *("filter.accuracy_min", "filter.accuracy_max", "filter.overlong"),
    *("advantage.estimator", "advantage.outcome_coef", "advantage.process_coef", "advantage.process_trust"),
    *("policy.lr", "policy.num_minibatches", "policy.clip_low", "policy.clip_high", "policy.kl_coef"),
    *("policy.entropy_coef", "policy.aggregation"),
    *("prm.enabled", "prm.lr", "prm.beta", "prm.loss", "prm.update_order", "prm.granularity"),
)
"""The settings that are compared; `run/config` on the page TEXT has all."""


def hparam_values(info: RunInfo) -> Iterator[Summary.Value]:
    """Yield the settings of a run and the list of the accuracies to show beside them."""
    settings = compared_settings(info)
    infos = [HParamInfo(name=name, type=_type_of(value)) for name, value in settings.items()]
    experiment = Experiment(
        time_created_secs=time.time(),
        hparam_infos=infos,
        metric_infos=[MetricInfo(name=MetricName(tag=tag)) for tag in result_tags(info)],
    )
    yield _value(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))
    start = SessionStartInfo(group_name=info.name, start_time_secs=time.time())
    for name, value in settings.items():
        start.hparams[name].CopyFrom(_proto_of(value))
    yield _value(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))


def compared_settings(info: RunInfo) -> dict[str, bool | float | str]:
    """Return the settings that runs are compared by; one without a value, as "none"."""
    flat = flat_settings(info.config)
    return {name: _plain(flat[name]) for name in SETTINGS if name in flat}


def result_tags(info: RunInfo) -> list[str]:
    """Return the tags of the results; the page shows the last value of each."""
    benchmarks = [f"eval/{name}/accuracy" for name in info.benchmarks]
    return ["eval/accuracy", *benchmarks, "rollout/accuracy_sampled", "prm/pair_accuracy"]


def _plain(value: object) -> bool | float | str:
    if isinstance(value, bool | str):
        return value
    if isinstance(value, int | float):
        return float(value)
    return "none" if value is None else str(value)


def _type_of(value: bool | float | str) -> int:
    if isinstance(value, bool):
        return DATA_TYPE_BOOL
    return DATA_TYPE_FLOAT64 if isinstance(value, float) else DATA_TYPE_STRING


def _proto_of(value: bool | float | str) -> Value:
    if isinstance(value, bool):
        return Value(bool_value=value)
    return Value(string_value=value) if isinstance(value, str) else Value(number_value=value)


def _value(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(
        tag=tag, metadata=metadata.create_summary_metadata(data), tensor=metadata.NULL_TENSOR
    )
