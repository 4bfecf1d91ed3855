#!/bin/sh
# Cuts clips in two with an overlap, distorts the right part, and has `longtake stitch` join them with
# each method: seam_ratio / warp_ratio / sharpness. Needs ffmpeg.
#
#     tests/joins.sh CLIP FIRST END OVERLAP
#
# takes the frames FIRST to END of CLIP. "drift": the right part is rotated by 0.35 degrees, enlarged by
# 0.8% and shifted by (2.5, -1.5) px. "all": it also has a gain of 7% and 4 levels more, and static
# grain of 6 levels.
set -eu
clip=$1 first=$2 end=$3 overlap=$4
longtake=${LONGTAKE:-target/release/longtake}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
middle=$(((first + end + overlap) / 2))
cut() { # FROM TO FILTERS FILE
    ffmpeg -v error -i "$clip" -vf "trim=start_frame=$1:end_frame=$2,setpts=PTS-STARTPTS,format=gbrp,$3" \
        -fps_mode passthrough -c:v ffv1 "$work/$4"
}
# Where each corner of the picture comes from: (c, s) is (cos, sin) of the angle over the enlargement.
c=0.992045 s=0.006060
corner() { # SIGN_X SIGN_Y
    echo "W/2+($1)*W/2*$c-($2)*H/2*$s-2.5:H/2+($1)*W/2*$s+($2)*H/2*$c+1.5"
}
drift="perspective=$(corner -1 -1):$(corner 1 -1):$(corner -1 1):$(corner 1 1):interpolation=cubic"
levels="lutrgb=r=val*1.07+4:g=val*1.07+4:b=val*1.07+4,noise=alls=6:all_seed=1"
cut "$first" "$middle" null left.mkv
cut $((middle - overlap)) "$end" "$drift" drift.mkv
cut $((middle - overlap)) "$end" "$drift,$levels" all.mkv
for change in drift all; do
    printf '%s, %s:' "$(basename "$clip")" "$change"
    for method in cut crossfade flow; do
        "$longtake" stitch "$work/left.mkv" "$work/$change.mkv" --overlap "$overlap" --method "$method" \
            --codec png -o "$work/$change-$method/%06d.png" --report "$work/report.json" >/dev/null 2>&1
        printf '  %s' "$method"
        for score in seam_ratio warp_ratio sharpness; do
            printf ' %.2f' "$(grep -o "\"$score\": *[0-9.]*" "$work/report.json" | sed 's/.*[: ]//')"
        done
    done
    echo
done
