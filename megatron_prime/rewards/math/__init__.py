"""Verification of boxed mathematical answers.

- `answer`: the `math` verifier
- `boxed`: finds the boxed answer in a response
- `notation`: converts an answer to one notation
- `structure`: splits lists, sets, tuples and units
- `intervals`: parses intervals and inequalities
- `equations`: splits equations and ratios
- `cost`: recognizes answers that are too expensive to evaluate
"""
