"""PRM training objectives, one per module; the module's name is the value of `prm.loss`.

A module holds a class `Objective` that fulfils `algorithm.prm_loss.PRMObjective`. Adding a file adds a name.

- `ce`: cross-entropy of the sequence score with the outcome, the paper's and the default.
- `ce_intercept`: cross-entropy with the logit of the group's accuracy as a class prior.
- `dpo`: each response against the mean score of its group's other side.
- `bon_acc`: dpo weighted by the response's rank in its group by outcome.
- `bon_rm`: dpo weighted by the response's rank in its group by score.
- `dpo_units`: dpo after each step or turn.
- `ipvrm`: cross-entropy of the length-normalized value of every prefix with the outcome.
- `value`: a critic instead of a PRM; cross-entropy of its value of every prefix with the outcome.
- `noisy_and`: experimental; cross-entropy of the probability that all tokens are right.
"""
