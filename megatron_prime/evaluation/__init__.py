"""Evaluation of policies and process reward models (PRMs) on held-out data.

- `accuracy`: avg@k and pass@k of sampled responses, and reports over several prompt sets
- `confidence`: bootstrap confidence intervals of means over problems
- `evaluator`: held-out prompts and benchmarks, sampled during training and by the eval command
- `first_errors`: ProcessBench's score for finding the first wrong step of a solution
- `planted_errors`: errors planted into correct solutions
- `prm_inputs`: the texts that the eval-prm command scores
- `prm_judge`: step scores of a PRM, and the reranking and ProcessBench metrics that follow from them
- `prm_report`: all metrics of a PRM over its inputs, and the files they are written to
- `probe`: metrics of a run's PRM on its probe set
- `probe_set`: the solutions that a run's PRM scores from time to time
- `process_labels`: ProcessBench files and files of preference pairs
- `reranking`: best-of-N, voting and pair accuracy
- `result_files`: metrics as JSON and TensorBoard files
- `saved_responses`: sampled responses with their outcomes, as files of the rollout log's format
- `step_scores`: scores of reasoning steps and their aggregation over a response
- `tables`: tables that the evaluation commands print
"""
