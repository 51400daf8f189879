"""Worker processes that run users' code under a deadline (verifiers and environments), and an event loop in a thread.

Only the standard library is imported, because every worker process imports the package.

- `frames`: the messages between a worker and the process that started it
- `program`: the worker's side
- `process`: the side of the process that started it
- `errors`: describes an exception of a user's code, with its place there
- `loop_thread`: an asyncio event loop in a thread
- `ports`: free ports for processes that are started later
"""
