"""Conversion of whole checkpoints between Hugging Face and Megatron formats, and export of a model being trained.

Whole checkpoints are converted file by file, in bounded memory and without a process group.

- `cells`: the layout of a model in Megatron's distributed checkpoint format, in terms of HF tensors
- `dist_files`: reading and writing Megatron's distributed checkpoint files chunk by chunk
- `export`: writing a model that is distributed over ranks as an HF checkpoint
- `file_tasks`: conversions split into output files: parallel, resumable, published atomically
- `logits`: comparison of a converted checkpoint with its source by log-probs
- `role`: conversion of one model of a training checkpoint to HF format
- `row_reader`: reading rows of HF tensors into existing memory
- `to_hf`: Megatron checkpoint to HF checkpoint
- `to_megatron`: HF checkpoint to Megatron checkpoint
"""
