"""The tools that `environment.tools` knows by name: one module each, with a class `Tool` (see `toolbox`).

- `calculator`: evaluates an arithmetic expression
- `python`: runs a program in the sandbox of the code verifier
"""
