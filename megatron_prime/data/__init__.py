"""Data files to training and evaluation prompts: reading, rendering, tokenization, mixing and resumable order.

- `files`: the types of data files
- `rows/`: reads the rows of jsonl, json, parquet and csv files
- `conversations/`: turns of conversations, calls of tools, and the format of ShareGPT
- `messages`: checks chat messages, lists or JSON text
- `layouts`: finds prompt, answer, source and ability in a row, by the layout of a known data set
- `final_answers`: extracts the final answer from a worked solution
- `code_tests`: converts the unit tests of code benchmarks to ground truths
- `duplicates`: detects repeated prompts
- `bad_rows`: applies the policy for rows that cannot be used
- `rendering`: applies system prompt, instruction and chat template, and tokenizes
- `tokenizer`: loads the tokenizer and the tokens that end a response
- `reading`: combines the modules above into a reader of tokenized problems
- `benchmarks`: the benchmarks of the paper, their file layouts and sampling settings
- `columns`: stores records compactly, column by column
- `ordering`: visits a data set in a seeded, resumable order
- `mixing`: mixes several data sets at given rates
- `prompts`: data set of prompts to sample rollouts from
- `sft`: data set of demonstrations for supervised fine-tuning
- `responses/`: saved responses with outcomes, on which a PRM is trained
- `steps`: splits a response into reasoning steps
- `token_ends`: the place of each token in the text of a response
- `text_layout`: the text of a response with the places of its tokens and steps
- `whole_spans`: finds the formulas and code blocks that a step boundary must not cut
"""
