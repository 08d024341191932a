#!/bin/sh
# The whole way: what is needed, the published members, one file, proof and times. Options go to measure.py.
# It installs into the environment that `python` and `ensexport` are of; torch is left as it is.
set -eu
cd "$(dirname "$0")"
export TORCHANI_NO_WARN_EXTENSIONS=1

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run python -m pip install --no-deps -r requirements.txt
run python -m pip download --no-deps torchani==2.2.4
run python convert.py
run ensexport pack ckpts/ -o ani1x.onnx --force
run python measure.py "$@"
run python energy.py
