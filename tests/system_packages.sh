#!/bin/sh
# Installs the packages that some tests use; those tests skip without them.
# From npm into .venv, where npm is there: axe-core checks the accessibility of the report.
# From Debian, where this is root on Debian:
# dataset-fashion-mnist: real IDX files; chromium: the report in a browser; munge, slurm-wlm: a SLURM of our own.
axe=axe-core@4.14.1
if command -v npm >/dev/null && [ -d .venv ] && ! grep -qs "\"version\": \"${axe#*@}\"" .venv/npm/node_modules/axe-core/package.json; then
    npm install --silent --no-save --no-audit --no-fund --ignore-scripts --prefix .venv/npm "$axe" >/dev/null 2>&1 ||
        echo "could not install $axe: the test that needs it will skip"
fi
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
