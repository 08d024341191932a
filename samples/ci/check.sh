#!/bin/sh
# What a pipeline runs: train, pack, prove, time. It ends with the exit code of the first step that fails.
#
# BLOCKS       rounds of the measurement (30)
# EPOCHS       passes over the training images (15)
# MIN_SPEEDUP  how fast the file must be (2:loop)
# OUT          where the file and the answers go (out, beside this script)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=${OUT:-$here/out}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here/../digits"

# step NAME COMMAND...: the command's answer goes to NAME.json; where it fails, it is shown too.
step() {
    name=$1
    shift
    printf '+ %s\n' "$*"
    "$@" >"$out/$name.json" || {
        code=$?
        cat "$out/$name.json"
        printf '%s failed with exit code %s\n' "$name" "$code" >&2
        exit "$code"
    }
}

rm -rf ckpts
python train.py --epochs "${EPOCHS:-15}"
step pack ensexport pack ckpts/ -o "$out/ensemble.onnx" --force --json
step validate ensexport validate "$out/ensemble.onnx" ckpts/ --json
step bench ensexport bench "$out/ensemble.onnx" ckpts/ --batch 1 --alternatives loop,strong-loop \
    --blocks "${BLOCKS:-30}" --min-speedup "${MIN_SPEEDUP:-2:loop}" --json
printf 'ensemble.onnx is proven and fast enough; what was found is in %s\n' "${OUT:-samples/ci/out}"
