"""Verification of programs against unit tests, in a sandbox.

- `verifier`: the `code` verifier
- `comparison`: compares outputs and results with the expected ones
- `sandbox`: runs an untrusted program in bubblewrap
- `launcher`: first program inside the sandbox
- `seccomp`: filter of system calls
- `cgroup`: limits on memory and processes by control groups
"""
