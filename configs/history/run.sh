#!/usr/bin/env bash
# Pre-trains CBOW, ELMo, GPT, BERT and T5 on one corpus, trains each to classify, and compares them: run.sh [DIR]
# Takes about 20 minutes on 2 cores. After a kill, run it again to resume.
set -euo pipefail
out=${1:-runs/history}
config=$(dirname "$0")/history.py
runs=()
for model in cbow elmo gpt bert t5; do
    t5x-lite train --config="$config:$model" --workdir="$out/$model"
    t5x-lite train --config="$config:$model.classify" --workdir="$out/$model.classify" \
        --config.init.checkpoint="$out/$model"
    runs+=("$out/$model.classify")
done
t5x-lite compare "${runs[@]}" --output="$out/history.html"
