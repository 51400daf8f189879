"""Pages of the documentation that are generated when mkdocs builds the site (mkdocs.yml, `make docs`).

- `command_line`: the page of all commands, from their arguments.
- `configuration`: the page of all keys, from the tables of the configuration.
- `hooks`: what mkdocs calls: adds the generated pages, and replaces formulas.
- `maths`: formulas as SVG, so that no page needs a script.
- `metrics`: the page of all metrics, from their descriptions.
"""
