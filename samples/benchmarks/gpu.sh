#!/bin/sh
# `make bench-gpu`: time the layers on this GPU, write the packer's table, measure the standard set. Exit 7 without CUDA.
# Options go to run.py, `--resume` among them: then the table that is there is kept.
set -eu
cd "$(dirname "$0")"

show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

show python run.py --provider cuda --check
table=../../ensexport/batching/tables/cuda.json
case " $* " in
*" --resume "*) ;;
*)
    show python calibrate.py --provider cuda --quick --limit-s 360 -o calibration_cuda.json
    show python make_table.py calibration_cuda.json -o "$table"
    ;;
esac
show python run.py --provider cuda,tensorrt --dtype tf32,bfloat16,float16 --members 10 --limit-s 1200 "$@"
