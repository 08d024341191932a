#!/bin/sh
# `make bench-gpu`: time the layers on this GPU, write the packer's table, measure the standard set. Exit 7 without CUDA.
# Options go to run.py, `--resume` among them: then the table that is there is kept.
set -eu
cd "$(dirname "$0")"

run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run python run.py --provider cuda --check
table=../../ensexport/batching/tables/cuda.json
case " $* " in
*" --resume "*) ;;
*)
    run python calibrate.py --provider cuda --quick --limit-s 360 -o calibration_cuda.json
    run python make_table.py calibration_cuda.json -o "$table"
    ;;
esac
run python run.py --provider cuda,tensorrt --dtype tf32,float16,bfloat16 --members 10 --limit-s 1200 "$@"
