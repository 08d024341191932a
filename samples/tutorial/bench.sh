#!/bin/sh
# The measurements of docs/bench.md, both options of the tutorial; `make bench` runs it. Options go to the benches.
set -eu
cd "$(dirname "$0")"
[ -e per_member.onnx ] || sh run.sh
for artifact in shared.onnx per_member.onnx; do
    printf '\n$ %s\n' "ensexport bench $artifact ckpts/ $*"
    ensexport bench "$artifact" ckpts/ "$@"
done
