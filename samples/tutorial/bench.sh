#!/bin/sh
# Times both options of the tutorial, after packing them where that is not done. Options go to the benches.
set -eu
cd "$(dirname "$0")"
[ -e per_member.onnx ] || sh run.sh
for artifact in shared.onnx per_member.onnx; do
    printf '\n$ %s\n' "ensexport bench $artifact ckpts/ $*"
    ensexport bench "$artifact" ckpts/ "$@"
done
