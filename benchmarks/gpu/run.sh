#!/usr/bin/env bash
# What a GPU can tell in fifteen minutes; see README.md beside this.
#
#   bash benchmarks/gpu/run.sh DATA_DIR OUT
#
# The same call again does what is missing. Environment: LIMIT_S (840) seconds for this call;
# PARTS ("a b d c e f"); PYTHON (python3); TOY=1 rehearses everything in small sizes; MIRROR, a
# folder that OUT's JSON files are copied to after each part. Exit status: 0 all is done, 3 some
# parts are left, 1 the card computes wrongly or a part failed.
set -u
data=${1:?DATA_DIR}; out=${2:?OUT}
here=$(cd "$(dirname "$0")" && pwd)
limit=${LIMIT_S:-840}; python=${PYTHON:-python3}
toy=${TOY:+--toy}
mkdir -p "$out"; out=$(cd "$out" && pwd); data=$(cd "$data" && pwd) || exit 1
export PYTHONPATH="$here/../..${PYTHONPATH:+:$PYTHONPATH}"
# Compiled programs outlive a part and a call; PyTorch keeps its share of the memory.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/jax_cache}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$out/inductor_cache}"
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
left=0 failed=0

mirror() {
  if [ -n "${MIRROR:-}" ]; then mkdir -p "$MIRROR"; cp "$out"/*.json "$out"/*.log "$MIRROR"/; fi
}
trap mirror EXIT

# part NAME SECONDS SCRIPT ARGUMENTS...: unless it is done, for at most so long.
part() {
  local name=$1 seconds=$2 script=$3 status
  local rest=$((limit - SECONDS))
  shift 3
  if grep -qs '"done": true' "$out/$name.json"; then echo "part $name: done before"; return; fi
  if [ "$rest" -lt 20 ]; then echo "part $name: no time left"; left=1; return; fi
  [ "$rest" -lt "$seconds" ] && seconds=$rest
  echo "part $name: at most $seconds s, from second $SECONDS on"
  timeout -s TERM -k 15 $((seconds + 5)) "$python" "$here/$script" "$@" $toy \
    --out "$out/$name.json" ${needs_seconds:+--seconds $seconds} > "$out/$name.log" 2>&1
  status=$?
  tail -n 4 "$out/$name.log" | cut -c -600
  if grep -qs '"done": true' "$out/$name.json"; then :
  elif [ $status = 124 ] || [ $status = 137 ] || [ $status = 0 ]; then left=1
  else echo "part $name: failed with $status, see $out/$name.log"; failed=1; fi
  mirror
}

run_part() {
  case $1 in
    a) part a_correct 90 correct.py ;;
    b) part b_resnet18 180 step.py --encoder resnet18 --size 32 --batch 512 ;;
    d) needs_seconds=1 part d_cifar10 560 anchor.py "$data" --workdir "$out/d_cifar10" ;;
    c) part c_pipeline 180 pipeline.py ;;
    e) part e_resnet50 240 step.py --encoder resnet50 --size 224 --batch 256 ;;
    f) part f_losses 180 losses.py ;;
    *) echo "there is no part $1"; exit 1 ;;
  esac
}

for name in ${PARTS:-a b d c e f}; do
  run_part "$name"
  # Of a card whose gradient is wrong no time is worth knowing.
  if [ "$name" = a ] && [ $failed = 1 ]; then exit 1; fi
done
[ $failed = 1 ] && exit 1
[ $left = 1 ] && { echo "call it again for what is left"; exit 3; }
echo "all is done: $out"
