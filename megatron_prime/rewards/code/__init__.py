"""Verification of programs against unit tests, in a sandbox.

- `verifier`: the `code` verifier
- `ground_truth`: the tests of a problem
- `prelude`: names that programs need not import
- `comparison`: compares outputs and results with the expected ones
- `sandbox`: runs an untrusted program in bubblewrap
- `launcher`: first program inside the sandbox
- `seccomp`: filter of system calls
- `orphans`: waits for processes whose parent has ended
- `cgroup`: limits on memory and processes by control groups
"""
