"""The [advantage] table: settings for computing advantages from outcome and process rewards."""

from typing import Literal

from megatron_prime.config.section import NameOrPath, NonNegative, NonNegativeFloat, Section, UnitInterval

ProcessBaseline = Literal["sequence_sum", "sequence_spread", "token_mean", "released"]
ProcessNormalization = Literal["none", "batch_max"]
ProcessCredit = Literal["own", "hindsight", "observation", "td", "min"]
ProcessTrust = Literal["full", "pair_accuracy"]
Whitening = Literal["none", "joint", "per_source"]


class AdvantageConfig(Section):
    """Computation of advantages (Eq. 4, 5, 7, 8 and Sec. 5.4); the defaults are the released code's.

    The text of the paper is process_baseline = "token_mean", process_normalization = "none", whitening = "none".
    """

    estimator: NameOrPath = "rloo"
    """A module of algorithm/estimators (rloo, grpo, reinforce, gae, prm_value, prm_gae, istar, spro), or a class as
    "package.module:Class"."""
    process_baseline: ProcessBaseline = "released"
    """The baseline that rloo subtracts from process rewards: Eq. 5 as printed (sequence_sum), the same total taken once
    per response (sequence_spread), Eq. 5 as its text says (token_mean), or the released code's."""
    process_normalization: ProcessNormalization = "batch_max"
    """batch_max divides process rewards by 1e-6 + the largest absolute undiscounted return of the batch. Where PRM and
    reference agree up to rounding noise, it scales that noise to +-1."""
    whitening: Whitening = "joint"
    """joint whitens the weighted sum of both parts; per_source whitens each part before it is weighted."""
    gamma_outcome: UnitInterval = 1.0
    """Discount of the outcome reward; 1 in the paper (Eq. 5 does not discount it)."""
    gamma_process: UnitInterval = 1.0
    """Discount of the process rewards."""
    outcome_coef: NonNegativeFloat = 1.0
    """Weight of the outcome part."""
    process_coef: NonNegativeFloat = 1.0
    """Weight of the process part; 0 trains on outcomes alone."""
    process_credit: ProcessCredit = "own"
    """own credits a token, step or turn with its process reward, as the paper does; hindsight with the rewards after
    it, up to those of the next one, and so leaves out what the PRM thinks of the decision itself. It pays where text
    that the policy did not write follows a decision, with a gamma_process well below 1. observation gives rewards to
    the replies of an environment alone, none to the policy's own tokens. td takes the change of the probability, by
    the PRM, that the response ends up right. min weighs the rewards of a response so that
    their return is about the lowest one that is still to come (PURE)."""
    process_warmup_steps: NonNegative = 0
    """Number of steps at the start of a run that train the policy on outcomes alone, while the PRM learns."""
    process_trust: ProcessTrust = "full"
    """full takes process_coef as it is; pair_accuracy multiplies it by max(0, 2 * a - 1), with a the fraction of the
    pairs of a right and a wrong response to one prompt that the process rewards of the batch order correctly. A PRM
    that prefers right responses no more than by chance then has no influence (ADR 0035)."""

    def counts_process(self, step_index: int) -> bool:
        """Return whether process rewards have a weight in the advantages of a step, counted from 0."""
        return self.process_coef > 0 and step_index >= self.process_warmup_steps
