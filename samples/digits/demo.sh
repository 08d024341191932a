#!/bin/sh
# The whole way, as a user would type it; `make demo` runs it. Options after the script's name go to train.py.
set -eu
cd "$(dirname "$0")"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

rm -rf ckpts
run python train.py "$@"
run ensexport pack ckpts/ -o ensemble.onnx -o ensemble.ts --force
run ensexport validate ensemble.ts ckpts/
run python evaluate.py ensemble.onnx
run ensexport pack ckpts/ --emit probs,entropy,mutual_information,vote --member-axis 1 --dtype float16 \
    -o uncertainty.onnx -o uncertainty.ts --force
run python uncertainty.py uncertainty.onnx
run ensexport bench ensemble.onnx ckpts/ --batch 1,8 --blocks 5
run python data.py test.npz
run ensexport bench ensemble.onnx ckpts/ --members-curve test.npz --members 1,2,5,10 --blocks 5 \
    --plot members-curve.svg --force

cat <<'TEXT'

Shown:
- networks that differ in their seed only, trained on real handwritten digits, became ONE ensemble.onnx and
  ONE ensemble.ts;
- every output of every member was compared with the loop over the members, at five batch sizes, before the
  files were put in place;
- the ONNX file alone gives each member's accuracy and the ensemble's;
- a second file computes the ensemble's probabilities and how far its members disagree inside the graph, in
  float16, and the members disagree more on noise than on digits;
- the first table says how many times as long each way to run the members takes as the one file does. It is a
  quick look, of five rounds only: `make bench` measures in full;
- the second one says what 1, 2, 5 and 10 members are worth on the test images, and take; members-curve.svg
  shows it.
TEXT
