#!/bin/sh
# Install bubblewrap, which isolates the code verifier's programs, or say which tests do without it and how to get it.
# Never fails: the tests of the sandbox are skipped where it is missing.
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "installing bubblewrap"
    if apt-get update -qq && apt-get install -y -qq bubblewrap >/dev/null; then
        exit 0
    fi
fi
echo "WARNING: bwrap is not installed: the sandbox's tests in tests/rewards/code are skipped." \
    "Install bubblewrap as root, e.g. with: apt-get install bubblewrap" >&2
