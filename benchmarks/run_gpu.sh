#!/usr/bin/env bash
# What only a GPU can show: benchmarks/run_gpu.sh DIR [tests|ops|model|train|timeline|sanitize] [--full], from the
# repository's root. Each part stands alone, takes minutes, can be repeated, and writes one JSON into DIR. Without a part:
# all of them, one after the other. --full: the whole matrix of the benchmarks, not the usual selection.
set -u
dir=${1:?usage: benchmarks/run_gpu.sh DIR [tests|ops|model|train|timeline|sanitize] [--full]}
mkdir -p "$dir"
full=""
for argument in "$@"; do [ "$argument" = --full ] && full=--full; done
device=${DEVICE:-cuda} # cpu tries the script itself

benchmark() { # the JSON's name, then a pattern of cases; written case by case, so that a run that is cut leaves some
  # shellcheck disable=SC2086
  python -m fastmask bench --device "$device" $full --limit "${LIMIT:-480}" --json "$dir/$1" --only "${SELECTION:-$2}"
}

run_tests() { # the JSON's name, then a command to run Python under, if any
  local json=$1 report status
  shift
  report=$(mktemp)
  timeout -s INT "${LIMIT:-540}" "$@" python -m pytest -m gpu -q "${TESTS:-tests}" ${SELECTION:+-k "$SELECTION"} --junitxml="$report"
  status=$?
  python - "$report" "$dir/$json" "$status" <<'EOF'
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import torch

report, path, status = sys.argv[1:]
try:
    suite = next(ElementTree.parse(report).iter("testsuite"))
except ElementTree.ParseError:  # pytest itself died: a segmentation fault, no memory left, too late
    result, bad = {"crashed": True}, []
else:
    result = {key: float(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped", "time")}
    bad = [case for case in suite.iter("testcase") if {"failure", "error"} & {part.tag for part in case}]
result["failed"] = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
result["status"] = int(status)
result["device"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
result["torch"] = torch.__version__
try:
    done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True)
    commit = done.stdout.strip() or None
except OSError:
    commit = None
result["commit"] = os.environ.get("FASTMASK_COMMIT") or commit
with open(path, "w") as file:
    json.dump(result, file, indent=1)
EOF
  rm -f "$report"
  return "$status"
}

part() {
  case $1 in
    tests) run_tests tests.json ;;
    ops) benchmark ops.json "^(?!Mask R-CNN|training)" ;;
    model) benchmark model.json "^Mask R-CNN" ;;
    train) benchmark train.json "^training" ;;
    timeline) # in both types
      local type status=0
      for type in bfloat16 float32; do
        python -m fastmask.benchmarks.timeline "$dir/timeline-$type.json" --device "$device" --dtype $type --rounds "${ROUNDS:-50}" || status=$?
      done
      return $status
      ;;
    sanitize)
      if ! command -v compute-sanitizer >/dev/null; then
        echo '{"skipped": "compute-sanitizer is not installed"}' | tee "$dir/sanitize.json"
        return 0
      fi
      # a smoke subset: hostile RoIs and boxes in one dtype, forward and backward; twice, as each tool finds its own
      local tool status=0
      export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # one allocation a tensor, or overruns into a neighbour are not seen
      for tool in memcheck racecheck; do
        SELECTION=${SELECTION:-"(float32 and (meets_the or gradients_meet)) or suppression_chains or bytes_equal"} \
          run_tests "sanitize-$tool.json" compute-sanitizer --tool $tool --error-exitcode 9 || status=$?
      done
      unset PYTORCH_NO_CUDA_MEMORY_CACHING
      python - "$dir" <<'EOF'
import json
import pathlib
import sys

parts = {tool: pathlib.Path(sys.argv[1], f"sanitize-{tool}.json") for tool in ("memcheck", "racecheck")}
result = {tool: json.loads(path.read_text()) for tool, path in parts.items()}
pathlib.Path(sys.argv[1], "sanitize.json").write_text(json.dumps(result, indent=1))
[path.unlink() for path in parts.values()]
EOF
      return $status
      ;;
    *) echo "the part must be tests, ops, model, train, timeline or sanitize, got $1" >&2; return 2 ;;
  esac
}

status=0
parts=${2:-tests ops model train timeline sanitize}
[ "$parts" = --full ] && parts="tests ops model train timeline sanitize"
for name in $parts; do part "$name" || status=$?; done
exit "$status"
