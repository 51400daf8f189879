"""The cost of a step beside its models: one rank's seconds and memory, by the number of responses.

    python -m benchmarks.controller [--before FOLDER] [--full]

Writes `benchmarks/results/controller.md`. FOLDER is a work tree of the commit to compare to. The step is the trainer's
own, of one of 32 data-parallel ranks: sampled groups of random tokens and heavy-tailed lengths pass the filter, become
a batch, are packed, scored, credited and trained on, and are described, with an observer for each kind of record. The
models return constants at once, and other ranks do not exist.

- `meter`: operations on tensors of the whole batch, their time, bytes and memory, and the memory beside them
- `step`: the synthetic groups and the step
- `report`: the tables
"""
