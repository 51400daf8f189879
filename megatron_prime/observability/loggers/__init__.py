"""Loggers: destinations of the metrics of a run besides metrics.jsonl, behind one protocol.

- `protocol`: the protocol, and the record of a step
- `backends`: the loggers by name, and the packages that they need
- `background`: runs a logger of a service in a thread, so that no failure or delay reaches the run
- `position`: the last step that a service got, for runs that are killed and resumed
- `tensorboard`: what TensorBoard shows of a run
- `event_files`: TensorBoard's files, and the removal of steps from them
- `layout`: TensorBoard's page of custom scalars
- `hparams`: TensorBoard's comparison of settings
- `weights_and_biases`: Weights & Biases, online and offline
- `mlflow_runs`: MLflow, with a local file store or a server
- `markdown`: text of models and users that cannot break a page
"""
