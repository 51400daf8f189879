"""Pages that show a run in a browser: curves, what the model wrote with the credit of each token, and problems.

- `runs`: finds the metrics and the logged steps of runs, and names the runs
- `panels`: the charts of the page of curves, and the question that each answers
- `curves`: the data of the charts, and the table of final values
- `logged_step`: one logged step as an index and small files of texts and numbers
- `problems`: problems that changed between wrong and right over the logged steps
- `site`: writes the pages into a folder
- `encoding`: data as scripts that a page can load without a server
- `server`: serves the pages on this machine alone
- `figures`: the charts as png or svg for papers
"""
