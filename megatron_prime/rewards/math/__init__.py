"""Verification of boxed mathematical answers.

- `answer`: the `math` verifier
- `boxed`: finds the boxed answer in a response
- `notation`: converts an answer to one notation
- `ground_truths`: reads alternatives, and refuses what no response can match
- `dialects`: rewrites programs' notation, layout and decoration as usual LaTeX
- `structure`: splits lists, sets and tuples
- `values`: compares values exactly
- `cost`: recognizes answers that are too expensive to evaluate
- `evaluated`: recognizes answers that leave an operation to be done
- `units`: splits values and units, and converts units
- `number_words`: reads numbers in words
- `clock`: compares times of day
- `intervals`: parses intervals, inequalities and sets without some points
- `equations`: splits equations and ratios, and compares curves
- `statements`: compares chains of relations, functions by cases, values with an approximation
- `families`: compares residue classes and values with a whole parameter
"""
