"""The server shows the site's pages to whoever has the address, and nothing else to nobody else."""

import threading

import httpx
import pytest

from megatron_prime.viewer.server import ViewServer
from megatron_prime.viewer.site import Site
from tests.support.viewed_runs import write_metrics, write_run


@pytest.fixture
def server(tmp_path):
    write_run(tmp_path / "run")
    site = Site([tmp_path / "run"], tmp_path / "out")
    site.update()
    with ViewServer(site) as started:
        thread = threading.Thread(target=started.serve_forever)
        thread.start()
        yield started
        started.shutdown()
        thread.join()


def test_pages_are_served_with_their_types_and_headers(server):
    page = httpx.get(server.url)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    assert httpx.get(server.url.replace("index.html", "")).text == page.text
    script = httpx.get(server.url.replace("index.html", "data/curves.js"))
    assert script.headers["content-type"] == "text/javascript; charset=utf-8"
    assert httpx.head(server.url).status_code == 200


def test_other_host_names_are_refused(server):
    """A page of another site could have its own name resolve to 127.0.0.1, and read the answers (DNS rebinding)."""
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1:1", ""):
        assert httpx.get(server.url, headers={"Host": host}).status_code in (400, 421)
    assert httpx.get(server.url, headers={"Host": f"localhost:{server.server_port}"}).status_code == 200


def test_paths_outside_and_files_of_other_kinds_are_not_found(server, tmp_path):
    (tmp_path / "secret.js").write_text("secret")
    (tmp_path / "out" / "link.js").symlink_to(tmp_path / "secret.js")
    (tmp_path / "out" / "notes.txt").write_text("secret")
    base = server.url.removesuffix("index.html")
    root = f"http://127.0.0.1:{server.server_port}"
    paths = (
        "link.js",
        "notes.txt",
        "view.json",
        "data",
        "data/",
        "..%2fsecret.js",
        "%2e%2e/secret.js",
        "a%00.js",
        "//etc/passwd",
    )
    for path in paths:
        assert httpx.get(base + path).status_code == 404, path
    for path in ("/", "/index.html", f"/{'x' * len(server.secret)}/index.html", "/favicon.ico", "/%ff"):
        assert httpx.get(root + path).status_code == 404, path
    assert httpx.post(server.url).status_code == 501


def test_opening_a_page_shows_what_the_run_has_logged_since(server, tmp_path, capfd):
    assert "20 records" in httpx.get(server.url).text
    write_metrics(tmp_path / "run", num_steps=30)
    assert "30 records" in httpx.get(server.url).text
    (tmp_path / "run" / "metrics.jsonl").write_text("damaged\n")
    assert "30 records" in httpx.get(server.url).text
    assert "the pages were not updated: " in capfd.readouterr().out


def test_a_port_in_use_is_an_error_that_names_it(server):
    for port in (server.server_port, 70000):
        with pytest.raises(ValueError, match=rf"cannot serve on port {port} .*name another port, or 0"):
            ViewServer(server.site, port)


def test_a_browser_that_closes_its_connection_leaves_no_traceback(server, capfd):
    for error in (BrokenPipeError(), KeyError("a fault")):
        try:
            raise error
        except type(error):
            server.handle_error(None, ("127.0.0.1", 1))
    printed = capfd.readouterr().err
    assert "BrokenPipe" not in printed
    assert "a fault" in printed


def test_every_server_has_a_secret_of_its_own_and_listens_on_this_machine_alone(server, tmp_path):
    with ViewServer(server.site) as other:
        assert other.secret != server.secret
        assert other.server_address[0] == "127.0.0.1"
