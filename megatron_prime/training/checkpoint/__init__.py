"""Checkpoints that are complete or absent, exact resume, and a lock: one job per run_dir.

- `store`: writes, finds, checks and loads the checkpoints of a run.
- `schedule`: the moments at which a run saves.
- `saver`: saving as the loop does it, with reports and tolerated errors.
- `role_writer`: one role's files, in the foreground or in a forked process.
- `fork_results`: what such a process hands to the trainer.
- `folder`: names, complete checkpoints, leftovers and removals.
- `manifest`: size and checksum of every file.
- `finished`: recognizes a run that has nothing left to do.
- `run_lock`: the kernel lock and the lease on run_dir.
"""
