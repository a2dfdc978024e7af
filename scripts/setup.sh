#!/usr/bin/env bash
# Makes .venv with all that running and testing need, and pulls the default models. Quick when there is nothing to do.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(pwd -P)
venv="$root/.venv"
stamp="$venv/.owm-setup"
extras="worker,gateway,simulate,dev"

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

wanted() { # what the stamp holds when this checkout is set up
    { echo "$root" "$extras"; cat pyproject.toml constraints.txt scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}

models_stamp="$venv/.owm-models-$(sha256sum <<<"${OWM_MODEL_CACHE_DIR:-$HOME/.owm/models}" | cut -c1-16)"

pull_models() {
    if [ "${OWM_SKIP_MODELS:-}" = 1 ]; then say "models left out (OWM_SKIP_MODELS=1)"; return; fi
    "$venv/bin/owm" models pull && touch "$models_stamp"
}

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ] && [ -x "$venv/bin/python" ]; then
    # The command itself checks sizes and hashes; the stamp only saves its start-up, and goes with the cache folder.
    if [ -f "$models_stamp" ] && [ -d "${OWM_MODEL_CACHE_DIR:-$HOME/.owm/models}" ]; then exit 0; fi
    pull_models
    exit 0
fi

find_python() {
    local name
    for name in ${PYTHON:-} python3.11 python3.12 python3.13 python3; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"; return
        fi
    done
}

missing_packages() { # Debian packages that the build of fastecdsa and the making of .venv need and that are not there
    local python=$1
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    if [ -x "$venv/bin/python" ] && "$venv/bin/python" -c 'import fastecdsa' 2>/dev/null; then return; fi
    command -v gcc >/dev/null || echo gcc libc6-dev
    [ -n "$(find /usr/include /usr/local/include -name gmp.h -print -quit 2>/dev/null)" ] || echo libgmp-dev
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
        || echo python3-dev
}

install_packages() {
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing system packages: $*"
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null
    else
        die "these system packages are missing: $*
setup: install them with:  sudo apt-get install $*
setup: (other systems: a C compiler, GMP's headers and Python's headers), then run this again"
    fi
}

python=$(find_python)
if [ -z "$python" ]; then
    install_packages python3 python3-venv python3-dev
    python=$(find_python)
    [ -n "$python" ] || die "Python 3.11 or later is needed; name one with PYTHON=/path/to/python3 make setup"
fi
packages=$(missing_packages "$python" | xargs)
# shellcheck disable=SC2086
[ -z "$packages" ] || install_packages $packages

# A .venv that was made elsewhere names other paths in its scripts and its editable install: it is made anew.
if [ -e "$venv" ] && ! { grep -qsF -- "$venv" "$venv/pyvenv.cfg" && "$venv/bin/python" -c 'import pip' 2>/dev/null; }; then
    say "the .venv here was made elsewhere or is broken: making it anew"
    rm -rf "$venv"
fi
[ -x "$venv/bin/python" ] || { say "making .venv with $("$python" --version)"; "$python" -m venv "$venv"; }

say "installing the packages that constraints.txt pins (wheels wherever there is one)"
"$venv/bin/python" -m pip install --quiet --prefer-binary --disable-pip-version-check \
    -c constraints.txt -e ".[$extras]" 2> >(grep -v -e BuildBackendWarning -e '\*\*\*' -e '^ *!!' -e 'Please be careful' \
    -e 'name as your package' -e 'with strategy' -e '^ *$' >&2)
# trio-typing, which libp2p asks for, brings types of an old trio that would shadow trio's own.
rm -rf "$venv"/lib/python3*/site-packages/trio-stubs
wanted >"$stamp"
pull_models
say "done"
