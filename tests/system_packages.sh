#!/bin/sh
# Installs the Debian packages that some tests use, where this is root on Debian; those tests skip without them.
# dataset-fashion-mnist: real IDX files; chromium: the report in a browser; munge, slurm-wlm: a SLURM of our own.
wanted="dataset-fashion-mnist chromium munge slurm-wlm"
command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || exit 0
for package in $wanted; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ]; then
    echo "not root: tests that need$missing will skip (apt-get install$missing)"
    exit 0
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086
if apt-get install -y -q --no-install-recommends $missing >"$log" 2>&1 ||
    { apt-get update -q >>"$log" 2>&1 && apt-get install -y -q --no-install-recommends $missing >>"$log" 2>&1; }; then
    echo "installed:$missing"
else
    tail -n 3 "$log"
    echo "could not install$missing: the tests that need them will skip"
fi
rm -f "$log"
