#!/usr/bin/env bash
# What a GPU is needed for, planned for 40 minutes of one, most useful part first.
#
#   bash experiments/gpu.sh                # everything; a second call goes on where the first stopped
#   bash experiments/gpu.sh --dry-run      # print the commands
#   bash experiments/gpu.sh --smoke        # tiny budgets on a CPU: does everything run?
#   bash experiments/gpu.sh layers fp32    # only the parts whose names contain one of these words
#
# CamVid and the encoder's weights (docs/data.md) are expected in local/camvid and
# local/mobilenetv2_100.safetensors; `local` is not tracked, and may be a link. Text and JSON of each
# part stay in docs/evidence/gpu; a part whose NAME.done lies there is skipped, and trainings resume
# inside runs/gpu. A part that fails does not stop the next one; the exit code is 1 then.
set -uo pipefail
cd "$(dirname "$0")/.."

mode=run words=()
for argument in "$@"; do
  case $argument in
    --dry-run) mode=dry ;;
    --smoke) mode=smoke ;;
    -*) echo "gpu.sh: error: $argument: use --dry-run or --smoke" >&2; exit 2 ;;
    *) words+=("$argument") ;;
  esac
done

python=${PYTHON:-python}
data=${DATA:-local/camvid} weights=${WEIGHTS:-local/mobilenetv2_100.safetensors}
out=docs/evidence/gpu runs=runs/gpu device=cuda accelerator=gpu training=()
seeds=(0 1 2) networks=(FsaNet FsaNet-no-attention DeepLabV3Plus FPN PSPNet Unet)
layers=(floor softmax sdpa paper-R1 dot-R1 dot-R2 linear_softmax-R1) sizes=(97x97 129x129 128x256 256x512)
fused=(floor sdpa dot-R1 dot-R1-inplace dot-R1-channels-last)
encoder=resnet101s image=769x769 peers=() bench=() workers=8
if [ $mode = smoke ]; then
  out=runs/gpu-smoke/evidence runs=runs/gpu-smoke device=cpu accelerator=cpu
  training=(--batch 1 --rounds 1)
  seeds=(0) networks=(FsaNet FPN) workers=0 peers=(--steps 2) bench=(--rounds 1 --seconds 5)
  layers=(floor dot-R1) fused=(floor dot-R1) sizes=(9x9) encoder=resnet10t image=65x65
fi
failed=0

# part NAME COMMAND...: run it unless it is done, with its output in NAME.txt
part() {
  local name=$1 word wanted=$((${#words[@]} == 0))
  shift
  for word in ${words[@]+"${words[@]}"}; do [[ $name == *"$word"* ]] && wanted=1; done
  [ $wanted = 1 ] || return 0
  if [ $mode = dry ]; then printf '%q ' "$@"; echo; return; fi
  if [ -e "$out/$name.done" ]; then echo "$name: done before"; return; fi
  mkdir -p "$out" "$runs"
  echo "== $name"
  local began=$SECONDS
  if "$@" 2>&1 | tee "$out/$name.txt"; then
    echo "$((SECONDS - began)) seconds" > "$out/$name.done"
  else
    failed=1
    echo "$name failed; see $out/$name.txt" >&2
  fi
}

# 1. Is the library right on a GPU?
tests=("$python" -m pytest -m gpu -n 0)
[ $mode = smoke ] && tests+=(--collect-only -q)
part tests "${tests[@]}"

# 2. What the layers cost, and ours with the Triton kernels
for dtype in float32 bfloat16; do
  for batch in 1 8; do
    part "layers-$dtype-batch$batch" "$python" -m fsanet bench --device $device --dtype $dtype \
      --batch $batch --layers "${layers[@]}" --sizes "${sizes[@]}" --json "$out/layers-$dtype-batch$batch.json" \
      ${bench[@]+"${bench[@]}"}
    part "triton-$dtype-batch$batch" env FSANET_TRITON=1 "$python" -m fsanet bench --device $device \
      --dtype $dtype --batch $batch --layers "${fused[@]}" --sizes "${sizes[@]}" \
      --json "$out/triton-$dtype-batch$batch.json" ${bench[@]+"${bench[@]}"}
  done
done

# 3. What a network costs to train and to run, with regular and with frequency attention
for dtype in float32 bfloat16; do
  part "network-$dtype" "$python" -m fsanet bench --device $device --dtype $dtype --model $encoder \
    --image $image --json "$out/network-$dtype.json" ${bench[@]+"${bench[@]}"}
done
part training "$python" experiments/training_cost.py --device $device --encoder $encoder \
  --image $image --json "$out/training.json" ${training[@]+"${training[@]}"}

# 4. Latency beside other networks, and CamVid at full budget with output stride 8, one seed after
# another: the longest part, so the last; whatever is trained when the time is up counts
networks=(--networks "${networks[@]}" --scores "$out/peers")
options=(--model.output_stride=8 --model.encoder_weights="$weights" --data.root="$data")
part peers-cost "$python" experiments/peers.py cost "${networks[@]}" --device $device \
  ${training[@]+--rounds=2} "${options[@]}"
part peers "$python" experiments/peers.py train "${networks[@]}" --seeds "${seeds[@]}" \
  ${peers[@]+"${peers[@]}"} --out "$runs/peers" --accelerator=$accelerator --data.workers=$workers \
  "${options[@]}"

exit $failed
