#!/usr/bin/env bash
# From nothing to a trained adapter on two CPU ranks: synthetic raw data -> shards -> stage 1 -> stage 2 -> export.
# Usage: launch/demo.sh FOLDER (made again where it holds an unfinished demo; `make demo` calls it).
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-demo}
size="--frames 9 --height 64 --width 96"
started=$SECONDS

if [ ! -f "$out/shards/train/manifest.json" ]; then
    echo "== rendering scenes and fitting tiny encoders"
    # shellcheck disable=SC2086
    python launch/build_shards.py synthesize --family fantasy_world --output "$out/raw" --encoders "$out/encoders" \
        --clips 128 --seed 0 $size
    echo "== building shards"
    # shellcheck disable=SC2086
    python launch/build_shards.py build --family fantasy_world --input "$out/raw" --output "$out/shards" $size \
        --vae "$out/encoders/vae" --text-encoder "$out/encoders/text_encoder" --tokenizer "$out/encoders/tokenizer" \
        --replace
fi
python launch/build_shards.py check "$out/shards"

echo "== training both stages on two ranks (ZeRO-3, bf16 with fp32 master weights)"
deepspeed --num_accelerators 2 launch/pipeline.py --family fantasy_world --profile demo \
    --data "$out/shards" --run "$out/run"
python launch/export.py --adapter "$out/run/stage2/adapter" --output "$out/fantasy_world_tiny.safetensors" --dtype bf16

echo
echo "pictures:    $out/run/previews"
echo "report:      $out/run/report.html"
echo "safetensors: $out/fantasy_world_tiny.safetensors (adapter: $out/run/stage2/adapter)"
echo "took $((SECONDS - started)) s"
