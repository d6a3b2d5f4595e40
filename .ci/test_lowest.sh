#!/usr/bin/env bash
# Installs every requirement of setup.py at its lower bound into FOLDER (default: .venv-lowest) and runs a few tests of
# every kind there: .ci/test_lowest.sh [FOLDER].
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${1:-.venv-lowest}
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 DS_ACCELERATOR=${DS_ACCELERATOR:-cpu}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
PATH="$(realpath "$venv/bin"):$PATH"
# All extras but the stores in the cloud and the GPU's kernels, which no test reaches.
python - > "$venv/lowest.txt" <<'PYTHON'
import ast, pathlib
tree = ast.parse(pathlib.Path("setup.py").read_text())
call = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "setup")
names = {n.targets[0].id: n.value for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.List)}
lists = [k.value for k in call.keywords if k.arg == "install_requires"] + list(names.values())
for keyword in call.keywords:
    if keyword.arg == "extras_require":
        lists += [v for k, v in zip(keyword.value.keys, keyword.value.values) if k.value not in ("s3", "gcs", "gpu")]
elements = [e for listed in lists if isinstance(listed, ast.List) for e in listed.elts]
found = {e.value.replace(">=", "==") for e in elements if isinstance(e, ast.Constant)}
print("\n".join(sorted(found)))
PYTHON
grep '^torch==' "$venv/lowest.txt" | xargs pip install --quiet setuptools wheel ninja packaging py-cpuinfo numpy
grep '^deepspeed==' "$venv/lowest.txt" | xargs pip install --quiet --no-build-isolation
pip install --quiet -r "$venv/lowest.txt"
pip install --quiet --no-deps --no-build-isolation -e .
python -m pytest -q -x -p no:cacheprovider tests/trainer tests/launch/test_build_shards.py tests/launch/test_package.py \
    tests/data/stores tests/data/encoding tests/data/format tests/data/outputs tests/models/common tests/models/metrics \
    tests/distributed/test_parity.py tests/distributed/test_dance_with_music.py
