"""Which random numbers a call of `Engine.generate` uses: one key for each (step, round) and each evaluation.

A key says where in the run it stands, not what ran before, so that a resumed run draws the same numbers.
"""

MAX_ROUNDS = 1 << 16
_MAX_STEPS = 1 << 40
_MAX_SETS = 1 << 20
_EVALUATION = 1 << 62


def training_stream_key(step_index: int, round_index: int) -> int:
    """Key of one sampling round of a training step. Raises ValueError out of range."""
    if not 0 <= step_index < _MAX_STEPS or not 0 <= round_index < MAX_ROUNDS:
        raise ValueError(f"no stream key for step {step_index}, round {round_index}")
    return step_index * MAX_ROUNDS + round_index


def evaluation_stream_key(step_index: int, set_index: int = 0) -> int:
    """Key of the evaluation of one set of prompts after step_index steps, unlike all training keys.

    Raises ValueError out of range.
    """
    if not 0 <= step_index < _MAX_STEPS or not 0 <= set_index < _MAX_SETS:
        raise ValueError(f"no stream key for an evaluation at step {step_index}, set {set_index}")
    return _EVALUATION + set_index * _MAX_STEPS + step_index
