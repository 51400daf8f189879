"""The command `megatron-prime view`: shows runs in a browser, or writes their curves as figures."""

import sys
import webbrowser

from megatron_prime.cli.arguments import Options
from megatron_prime.config.loading import ConfigError
from megatron_prime.viewer.figures import export_figures
from megatron_prime.viewer.runs import open_runs
from megatron_prime.viewer.server import HOST, ViewServer
from megatron_prime.viewer.site import Site

PAGES, FIGURES = "view", "figures"
"""Folders within the first run, unless --output names another."""


def view(options: Options) -> int:
    """Write the pages of the runs and open them; with --serve, serve them until Ctrl-C; with --export, write figures.

    Raises:
        ConfigError: A folder is no run, its metrics are damaged, or the output cannot be written.
    """
    output = options.output or options.runs[0] / (FIGURES if options.export else PAGES)
    try:
        if options.export:
            files = export_figures(open_runs(options.runs), output, options.export)
            _say(f"wrote {len(files)} figures: {output}/*.{options.export}", options.quiet)
            return 0
        # Before the folder is created, so that a mistyped run leaves none.
        open_runs(options.runs)
        site = Site(options.runs, output)
        site.update()
        for notice in site.notices:
            print(f"WARNING: {notice}", file=sys.stderr)  # noqa: T201
        if options.serve is not None:
            return _serve(site, options)
    except ValueError as error:
        raise ConfigError("view", str(error).splitlines()) from error
    except OSError as error:
        # Of reading, the errors name a file of the run.
        advice = (
            "" if options.output else f" (if {output} cannot be written, name another folder with --output)"
        )
        raise ConfigError("view", [f"{error}{advice}"]) from error
    page = output.resolve() / "index.html"
    _say(f"wrote {page}", options.quiet)
    if not options.no_open:
        _open(page.as_uri())
    return 0


def _serve(site: Site, options: Options) -> int:
    with ViewServer(site, options.serve) as server:
        port = server.server_port
        # Without this address nobody finds the pages, so it is printed in any case.
        print(f"serving {server.url}", flush=True)  # noqa: T201
        _say("Ctrl-C ends the server; reloading a page shows what the run has logged since", options.quiet)
        _say(
            f"from another machine: ssh -L {port}:{HOST}:{port} MACHINE, then open the same address",
            options.quiet,
        )
        if not options.no_open:
            _open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def _say(line: str, is_quiet: bool) -> None:
    if not is_quiet:
        print(line, flush=True)  # noqa: T201


def _open(address: str) -> None:
    """Open a browser if there is a graphical one; a text browser would take the terminal."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return
    if not isinstance(browser, webbrowser.GenericBrowser) or isinstance(
        browser, webbrowser.BackgroundBrowser
    ):
        browser.open(address)
