#!/bin/bash
# What the report's browser tests need: Chromium, and axe-core in tests/.cache (a test-only file, never committed). Loud, but no failure: the tests skip without.
set -u
cd "$(dirname "$0")/../../.."
cache=tests/.cache
if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing Chromium (about 20 s)"
        { apt-get update -qq && apt-get install -y -qq chromium; } >/dev/null 2>&1
    fi
    command -v chromium >/dev/null || echo "NOTE: no Chromium here: the browser tests will be SKIPPED. Install it (apt-get install chromium) to run them."
fi
if [ ! -s $cache/axe.min.js ]; then
    mkdir -p $cache
    if command -v npm >/dev/null && (cd $cache && npm pack --silent axe-core@4.14.1 >/dev/null 2>&1 && tar -xzf axe-core-4.14.1.tgz package/axe.min.js --strip-components=1 && rm -f axe-core-4.14.1.tgz); then
        echo "axe-core fetched into $cache"
    else
        echo "NOTE: axe-core could not be fetched with npm: the accessibility tests will be SKIPPED."
    fi
fi
exit 0
