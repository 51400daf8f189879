"""Keys that select the random numbers of a call of `Engine.stream`: one per training step and per evaluation.

A key depends only on the position in the run, not on what ran before, so a resumed run draws the same numbers.
"""

# A training key is step * 2^16, below 2^56. Evaluation keys have bit 62 set, so the two never collide.
_STEP = 1 << 16
_MAX_STEPS = 1 << 40
_MAX_SETS = 1 << 20
_EVALUATION = 1 << 62


def training_stream_key(step_index: int) -> int:
    """Return the key of a training step.

    Raises:
        ValueError: the step is out of range.
    """
    if not 0 <= step_index < _MAX_STEPS:
        raise ValueError(f"no stream key for step {step_index}")
    return step_index * _STEP


def evaluation_stream_key(step_index: int, set_index: int = 0) -> int:
    """Return the key of the evaluation of one prompt set after step_index steps; it differs from all training keys.

    Raises:
        ValueError: the step or the set is out of range.
    """
    if not 0 <= step_index < _MAX_STEPS or not 0 <= set_index < _MAX_SETS:
        raise ValueError(f"no stream key for an evaluation at step {step_index}, set {set_index}")
    return _EVALUATION + set_index * _MAX_STEPS + step_index
