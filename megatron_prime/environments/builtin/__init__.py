"""The environments that `environment.name` knows by name: one module each, with a class `Environment`.

- `guess_number`: a game in text: guess a number that the row determines, told too high or too low
- `tools`: runs the tools that the policy calls, until it answers without a call
"""
