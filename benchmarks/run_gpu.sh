#!/usr/bin/env bash
# What only a GPU can show: benchmarks/run_gpu.sh DIR [PART...] [--again] [--full]; --help tells the rest. It needs no
# network and nothing installed but what the parts themselves use: PyTorch, Triton, pytest; torchvision for baselines.
set -eu
caller=$PWD
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-$(command -v python3 || command -v python)} || { echo "run_gpu.sh: there is no python3" >&2; exit 2; }

usable() { # all of fastmask comes from this checkout
  "$python" -c '
import importlib.util, pathlib, sys
for name in ("kernels", "benchmarks", "export"):
    found = importlib.util.find_spec(f"fastmask.{name}")
    if found is None or pathlib.Path(sys.argv[1], name).resolve() != pathlib.Path(found.origin).resolve().parent:
        sys.exit(1)' "$root" 2>/dev/null
}

if ! usable; then
  how="installed (pip install -e .)"
  "$python" -m pip show -q fastmask-rcnn >/dev/null 2>&1 || # another checkout's stays what it is
    "$python" -m pip install -q --no-deps --no-index --no-build-isolation -e . >/dev/null 2>&1 || true
  if ! usable; then # no pip, an old setuptools, or an environment that nothing may be installed in
    for folder in kernels benchmarks export; do ln -sfn "../$folder" "fastmask/$folder"; done # which git ignores
    how="linked (fastmask/kernels, fastmask/benchmarks, fastmask/export)"
  fi
  if ! usable; then
    echo "run_gpu.sh: fastmask cannot be imported, neither installed by pip nor linked:" >&2
    "$python" -c 'import fastmask.kernels, fastmask.benchmarks, fastmask.export' >&2 || true
    exit 2
  fi
  echo "run_gpu.sh: fastmask was $how, as $python did not find this checkout's"
fi
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # for tests that start Python elsewhere
case ${1-} in "" | /* | -*) ;; *) set -- "$caller/$1" "${@:2}" ;; esac # DIR, from where it was typed
exec "$python" -m fastmask.benchmarks.gpu_parts "$@"
