#!/bin/sh
# The browser tests drive Debian's Chromium. Install it where we may; else say how, and those tests are skipped.
for b in "${CHROMIUM:-}" chromium chromium-browser google-chrome; do
    [ -n "$b" ] && command -v "$b" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium for the browser tests ..."
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium fonts-dejavu >/dev/null
else
    echo "No Chromium: the browser tests will be skipped. To run them: sudo apt-get install chromium"
fi
