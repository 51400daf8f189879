#!/bin/sh
# Install the programs that some tests need: bubblewrap, which isolates the code verifier's programs, and Chromium, which
# opens the viewer's pages. Where one cannot be installed, say which tests do without it and how to get it.
# Never fails: those tests are skipped.
install() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing $1"
        if apt-get update -qq && apt-get install -y -qq "$1" >/dev/null; then
            return
        fi
    fi
    echo "WARNING: $1 is not installed: $2 are skipped. Install it as root, e.g. with: apt-get install $1" >&2
}

command -v bwrap >/dev/null || install bubblewrap "the sandbox's tests in tests/rewards/code"
command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
    || install chromium "the viewer's tests in a browser (tests/viewer/test_in_browser.py)"
