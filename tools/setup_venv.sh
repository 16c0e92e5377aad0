#!/usr/bin/env bash
# Set up .venv in the checkout with the pinned, checked set of packages; with STACK=upstream .venv-upstream with
# OpenMMLab's own. Safe to run again at any time: it returns at once when all is there, and after an interruption
# it goes on with the step that was cut short.
set -euo pipefail
if (($#)); then sed -n '2,4s/^# //p' "$0" >&2; exit 2; fi
cd "$(dirname "$0")/.."

fail() { echo "setup: $*" >&2; exit 1; }

case ${STACK:-maintained} in
  maintained) # the onedl-* forks, on a recent torch
    venv=.venv requirements=requirements newest=12 setuptools='setuptools>=77,<82'
    more='-r requirements/export.txt' ;; # which asks for a recent torch
  upstream) # the last versions that OpenMMLab released, on the torch that they were made for
    venv=.venv-upstream requirements=requirements/upstream newest=11 setuptools='setuptools<70' more= ;;
  *) fail "STACK must be maintained or upstream, got $STACK" ;;
esac
log=$venv/setup.log
stamp=$venv/setup.done

suitable() { # does this command run a Python that the pinned packages support?
  "$1" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $newest))" 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.11 python3.12 python3.10}; do
    if suitable "$candidate"; then command -v "$candidate"; return; fi
  done
  fail "no Python 3.10-3.$newest found; install one, or name it: PYTHON=/path/to/python3.11 make ..."
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

find_wheel() { # where a wheel of mmcv for this torch is published, if that page answers within seconds
  local page
  page=$("$venv/bin/python" - "$requirements" "${MMCV_WHEELS:-}" <<'EOF'
import sys, torch
requirements, root = sys.argv[1:]
major, minor, patch = torch.__version__.split('+')[0].split('.')
flavour = 'cu' + torch.version.cuda.replace('.', '') if torch.cuda.is_available() else 'cpu'
if requirements == 'requirements':
    print(f'{root or "https://mmwheels.onedl.ai"}/{flavour}-torch{major}{minor}{patch}/simple/onedl-mmcv/')
else:
    print(f'{root or "https://download.openmmlab.com/mmcv/dist"}/{flavour}/torch{major}.{minor}/index.html')
EOF
  )
  if timeout 10 "$venv/bin/python" -c \
    "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)" "$page" 2>>"$log"; then
    echo "$page"
  fi
}

compile_mmcv() { # into a folder that is kept: a wheel of one torch, Python and GPU fits no other
  if ! ls "$wheels"/*.whl >/dev/null 2>&1; then
    "$venv/bin/python" -m pip wheel --disable-pip-version-check --no-cache-dir --no-deps --no-build-isolation \
      --wheel-dir "$wheels.part" -r $requirements/mmcv.txt
    rm -rf "$wheels" && mv "$wheels.part" "$wheels"
  fi
  "${pip[@]}" --no-deps "$wheels"/*.whl
}

# One at a time, where the system has flock: a second terminal waits here.
if command -v flock >/dev/null; then exec 9>.setup.lock && flock 9; fi

fingerprint="$PWD $(cat setup.py requirements/dev.txt $requirements/*.txt tools/setup_venv.sh | cksum)"
if [[ -x $venv/bin/python && -f $stamp && $(cat "$stamp") == "$fingerprint" ]]; then exit 0; fi

python=$(find_python)
echo "setup: making $venv with $python; it takes 2.5 GB of downloads and 6 GB of disk"
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  "$python" -m venv --clear "$venv" || fail "venv failed. Debian/Ubuntu: apt-get install python3-venv"
fi
pip=("$venv/bin/python" -m pip install --disable-pip-version-check)
if command -v uv >/dev/null; then pip=(uv pip install --python "$venv/bin/python"); fi

step "torch (downloads 2.5 GB)" "${pip[@]}" -r $requirements/torch.txt
if page=$(find_wheel) && [[ -n $page ]] &&
  "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --no-index --only-binary :all: \
    --find-links "$page" -r $requirements/mmcv.txt >>"$log" 2>&1; then
  echo "setup: mmcv as a wheel from $page"
else
  echo "setup: no wheel of mmcv from ${page:-a page that answers}; it is compiled"
  command -v g++ >/dev/null || fail "g++ not found: mmcv is compiled here. Debian/Ubuntu: apt-get install g++"
  headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
  [[ -f $headers/Python.h ]] ||
    fail "Python headers not found in $headers. Debian/Ubuntu: apt-get install python3-dev"
  if ! "$venv/bin/python" -c 'import sys, torch; from torch.utils.cpp_extension import CUDA_HOME
sys.exit(torch.cuda.is_available() and CUDA_HOME is None)' 2>>"$log"; then
    fail "there is a GPU but no nvcc, which mmcv's CUDA operators are compiled with. Install the CUDA toolkit \
of torch's version (python -c 'import torch; print(torch.version.cuda)'), or set up for CPU with \
CUDA_VISIBLE_DEVICES= make setup"
  fi
  step "build tools" "${pip[@]}" "$setuptools" wheel ninja psutil
  # For the GPUs of this machine only.
  read -r built_for TORCH_CUDA_ARCH_LIST < <("$venv/bin/python" -c 'import sys, torch
found = {"%d.%d" % torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
print(f"torch{torch.__version__}-python{sys.version_info[0]}.{sys.version_info[1]}", ";".join(sorted(found)))' 2>>"$log")
  # Python's own flags ask for -g, which doubles the time.
  export TORCH_CUDA_ARCH_LIST CFLAGS="-O2 -g0 ${CFLAGS:-}"
  version=$(grep -o '^[a-z-]*mmcv==[0-9.]*' $requirements/mmcv.txt)
  wheels=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/mmsgformer/$version-$built_for-${TORCH_CUDA_ARCH_LIST:-cpu}
  step "mmcv (compiles its operators: about 6 minutes on 2 cores; kept in $wheels)" compile_mmcv
fi
step "mmengine, mmdet, mmseg, mmpretrain and mmsgformer" "${pip[@]}" "$setuptools" wheel \
  -r $requirements/torch.txt -r $requirements/mmcv.txt -r $requirements/frameworks.txt -r requirements/dev.txt $more
step "mmsgformer itself" "${pip[@]}" --no-build-isolation --no-deps -e .
step "OpenCV without a desktop's libraries" "${pip[@]}" --no-deps --force-reinstall -r $requirements/opencv.txt
step "trying the imports" "$venv/bin/python" -c 'import mmcv.ops, mmdet, mmpretrain, mmseg, mmsgformer'
echo "$fingerprint" >"$stamp"
echo "setup: ready in $SECONDS s"
