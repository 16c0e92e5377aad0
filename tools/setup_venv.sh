#!/usr/bin/env bash
# Set up .venv in the checkout with the pinned, checked set of packages. Safe to run again at any time: it
# returns at once when all is there, and after an interruption it goes on with the step that was cut short.
set -euo pipefail
if (($#)); then sed -n '2,3s/^# //p' "$0" >&2; exit 2; fi
cd "$(dirname "$0")/.."

venv=.venv
log=$venv/setup.log
stamp=$venv/setup.done

fail() { echo "setup: $*" >&2; exit 1; }

suitable() { # does this command run a Python that the pinned packages support?
  "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.10}; do
    if suitable "$candidate"; then command -v "$candidate"; return; fi
  done
  fail "no Python 3.10-3.12 found; install one, or name it: PYTHON=/path/to/python3.11 make ..."
}

step() { # step TITLE COMMAND...: run quietly, with a sign of life; show the log's end on failure
  local title=$1 start=$SECONDS next=30
  shift
  echo "setup: $title"
  set -m # its own process group, so that an interruption ends the compilers too
  "$@" >>"$log" 2>&1 &
  set +m
  local pid=$!
  trap "kill -- -$pid 2>/dev/null; exit 130" INT TERM HUP
  while kill -0 $pid 2>/dev/null; do
    sleep 1
    if ((SECONDS - start >= next)); then
      echo "setup:   still at it after $((SECONDS - start)) s"
      next=$((next + 60))
    fi
  done
  if ! wait $pid; then
    tail -n 30 "$log" >&2
    fail "'$title' failed; the whole log is in $log. Run the same command again to go on from here; if it fails again, delete $venv first."
  fi
  trap - INT TERM HUP
  echo "setup:   done in $((SECONDS - start)) s"
}

# One at a time, where the system has flock: a second terminal waits here.
if command -v flock >/dev/null; then exec 9>.setup.lock && flock 9; fi

fingerprint="$PWD $(cat setup.py requirements/*.txt tools/setup_venv.sh | cksum)"
if [[ -x $venv/bin/python && -f $stamp && $(cat "$stamp") == "$fingerprint" ]]; then exit 0; fi

python=$(find_python)
command -v g++ >/dev/null || fail "g++ not found: mmcv is compiled here. Debian/Ubuntu: apt-get install g++"
headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
[[ -f $headers/Python.h ]] ||
  fail "Python headers not found in $headers. Debian/Ubuntu: apt-get install python3-dev"

echo "setup: making $venv with $python; the first time takes about 10 minutes on 2 cores and 6 GB of disk"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear "$venv" || fail "venv failed. Debian/Ubuntu: apt-get install python3-venv"
fi
pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
step "torch (downloads 2.5 GB)" "${pip[@]}" -r requirements/torch.txt
step "build tools" "${pip[@]}" 'setuptools>=77,<82' wheel ninja psutil
if ! "$venv/bin/python" -c 'import sys, torch; from torch.utils.cpp_extension import CUDA_HOME
sys.exit(torch.cuda.is_available() and CUDA_HOME is None)' 2>>"$log"; then
  fail "there is a GPU but no nvcc, which mmcv's CUDA operators are compiled with. Install the CUDA toolkit \
of torch's version (python -c 'import torch; print(torch.version.cuda)'), or set up for CPU with \
CUDA_VISIBLE_DEVICES= make setup"
fi
step "mmcv (compiles its operators: about 8 minutes on 2 cores, seconds if pip has it cached)" \
  "${pip[@]}" --no-build-isolation -r requirements/mmcv.txt
step "mmengine, mmdet, mmseg, mmpretrain and mmsgformer" "${pip[@]}" --no-build-isolation -e '.[full,dev]'
step "OpenCV without a desktop's libraries" \
  "${pip[@]}" --no-deps --force-reinstall -r requirements/opencv.txt
step "trying the imports" "$venv/bin/python" -c 'import mmcv.ops, mmdet, mmpretrain, mmseg, mmsgformer'
echo "$fingerprint" >"$stamp"
echo "setup: ready in $SECONDS s"
