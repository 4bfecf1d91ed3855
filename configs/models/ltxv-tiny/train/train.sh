#!/bin/sh
# The whole training on one GPU: train.sh FOLDER VAE_SECONDS DIT_SECONDS OWN_SECONDS CLIPS_SECONDS. Results lie in
# FOLDER/out. A killed training goes on from FOLDER/*.state with the same command.
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/out"
cd "$1"
python3 "$here/check.py"
if [ ! -e before ]; then
    python3 "$here/train_vae.py" --seconds "$2" --out out --state vae.state
    python3 "$here/train_dit.py" --seconds "$3" --own "$4" --guidance 2.5 --out out --state dit.state
    cp -r out before.new && mv before.new before
fi
python3 "$here/train_clips.py" --seconds "$5" --init before --out out --state clips.state
python3 "$here/judge.py" --out out --results out
