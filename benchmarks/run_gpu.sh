#!/usr/bin/env bash
# Tests and measurements on a GPU: benchmarks/run_gpu.sh DIR [PART...] [--again] [--full]; see --help. It needs no network
# and only the packages that the parts use: PyTorch, Triton, pytest; torchvision for baselines.
set -eu
caller=$PWD
cd "$(dirname "$0")/.."
root=$PWD
python=${PYTHON:-$(command -v python3 || command -v python)} || { echo "run_gpu.sh: there is no python3" >&2; exit 2; }

usable() { # all of fastmask comes from this checkout
  "$python" -c '
import importlib.util, pathlib, sys
for name in ("kernels", "benchmarks", "export"):
    spec = importlib.util.find_spec(f"fastmask.{name}")
    if spec is None or pathlib.Path(sys.argv[1], name).resolve() != pathlib.Path(spec.origin).resolve().parent:
        sys.exit(1)' "$root" 2>/dev/null
}

export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} # also for tests that start Python elsewhere
if ! usable; then # links that a transfer lost
  for folder in kernels benchmarks export; do ln -sfn "../$folder" "fastmask/$folder"; done
  if ! usable; then
    echo "run_gpu.sh: fastmask cannot be imported from $root:" >&2
    "$python" -c 'import fastmask.kernels, fastmask.benchmarks, fastmask.export' >&2 || true
    exit 2
  fi
  echo "run_gpu.sh: fastmask/kernels, fastmask/benchmarks and fastmask/export were linked again"
fi
case ${1-} in "" | /* | -*) ;; *) set -- "$caller/$1" "${@:2}" ;; esac # DIR, from where it was typed
exec "$python" -m fastmask.benchmarks.gpu_parts "$@"
