#!/bin/sh
# The tutorial's steps by library and by command line; `make samples` runs it. Options go to tutorial.py.
set -eu
cd "$(dirname "$0")"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run python tutorial.py "$@"
run ensexport pack ckpts/ -o shared.onnx -o shared.ts --force
run ensexport pack ckpts/ --per-member x -o per_member.onnx --force
