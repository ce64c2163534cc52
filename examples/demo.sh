#!/usr/bin/env bash
# The main job, end to end, on real images. `make demo` runs it; everything lands in demo/. SEED=7 repeats a demo to the letter.
set -euo pipefail
SEED=${SEED:-$(date +%s)}
export HF_HUB_OFFLINE=1

# Act 1. Look: real satellite tiles, naturally redundant, nothing planted.
python examples/blue_marble.py --to demo/marble --tile 36                         # cut NASA's Blue Marble into tiles, a folder a climate
curate audit demo/marble --out demo/audit                                         # duplicates, quality findings, groups, one HTML report

# Act 2. Prove: a messy pool, messed up openly (what was planted stands in truth_* columns that no stage can read).
bash examples/get_fashion.sh demo/fashion                                         # Fashion-MNIST (MIT)
python examples/plant.py demo/fashion --to demo/pools --seed "$SEED"              # 40 % wrong labels, copies, junk, broken files, leaked test images
curate build examples/messy.yaml --pool demo/pools/messy --out demo/messy         # leakage, quality, exact and near copies, labels: ledger and shards
pretrain compare examples/plan.yaml --run demo/messy                              # full, random, random_clean, kept, untrained, raw pixels; 5 seeds
manifests report demo/messy                                                       # the funnel, every drop beside its witness, truth, verdict

# The same on the clean pool: the default rule, and a blunt cut to 30 %.
curate build examples/messy.yaml --pool demo/pools/clean --out demo/clean         # nothing planted in the labels
curate build examples/messy.yaml --pool demo/pools/clean --out demo/clean-cut --reuse demo/clean --set labels.neighbours.keep=2550
pretrain compare examples/plan-clean.yaml --run demo/clean                        # is the default safe, is the blunt cut harmful?
manifests report demo/clean
manifests show demo/messy                                                         # the funnel once more, and where the reports are
echo "reports: demo/audit/run/report.html demo/messy/report.html demo/clean/report.html (seed $SEED)"
