"""Generalized advantage estimation (arXiv 1506.02438) with the values of a critic, as in PPO (arXiv 1707.06347).

With v_t the value of the state after t tokens (`prm_objectives.value`), r_o the outcome, T tokens and no discount,

    A_t = sum_{k >= 0} lambda^k delta_{t+k},   delta_t = v_t - v_{t-1},   delta_T = r_o - v_{T-1}

for the tokens t = 1..T. lambda is `gamma_process` and `gamma_outcome`. lambda = 1 is r_o - v_{t-1}, and 0 the change of
the value by the token alone. Every token is a step, an environment's included; where replies are not scored, the change
that they bring belongs to the token before them.

The parts of an advantage (`algorithm.advantage`) add up to it: the outcome part is lambda^(T-t) * r_o, and the process
part the return of the rewards of credit `td`, where the value behind the last token is 0.
"""

from typing import ClassVar

from megatron_prime.algorithm.estimators import reinforce
from megatron_prime.algorithm.registry import Requirements


class Estimator(reinforce.Estimator):
    """Returns of the outcome and of the changes of a critic's value; responses are not compared within a group."""

    requires: ClassVar[Requirements] = Requirements(prm=True, value_differences=True, critic=True)
