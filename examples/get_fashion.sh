#!/bin/sh
# Fetch Fashion-MNIST (70,000 pictures, 28 x 28, MIT licence) into DIR/FashionMNIST/raw, where torchvision looks for it too.
#
#   examples/get_fashion.sh DIR
#
# First torchvision's own downloader, for 10 seconds; then the Debian package dataset-fashion-mnist, which is only unpacked, not installed.
# Files that are there and whole are not fetched again. PYTHON names the interpreter that has torchvision (default: .venv/bin/python, else python3).
set -eu

dir=${1:?"usage: get_fashion.sh DIR"}
raw="$dir/FashionMNIST/raw"
package=dataset-fashion-mnist
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-"$here/.venv/bin/python"}
command -v "$python" > /dev/null 2>&1 || python=python3

sums() {
    cat << 'SUMS'
c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888  train-images-idx3-ubyte
bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9  train-labels-idx1-ubyte
5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b  t10k-images-idx3-ubyte
0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34  t10k-labels-idx1-ubyte
SUMS
}

whole() { (cd "$raw" 2> /dev/null && sums | sha256sum --check --status 2> /dev/null); }

finish() {
    echo "Fashion-MNIST: $1, in $raw. Licence: MIT (copyright 2017 Zalando SE)."
    exit 0
}

from_torchvision() {
    "$python" - "$dir" << 'PYTHON'
import contextlib, signal, sys
from torchvision.datasets import FashionMNIST

def stop(*_):
    raise TimeoutError("no answer in 10 seconds")

signal.signal(signal.SIGALRM, stop)
signal.alarm(10)  # counted from here: loading torch takes seconds of its own
try:
    with contextlib.redirect_stdout(sys.stderr):
        FashionMNIST(sys.argv[1], download=True)
except (OSError, RuntimeError) as error:
    sys.exit(f"torchvision: {error}")
PYTHON
}

from_debian() {
    command -v apt-get > /dev/null && command -v dpkg-deb > /dev/null || { echo "Debian package: this system has no apt-get and dpkg-deb"; return 1; }
    work=$(mktemp -d) || return 1
    chmod 755 "$work" # apt reads as another user
    if [ "$(id -u)" = 0 ]; then
        apt-get update > "$work/log" 2>&1 || { echo "Debian package: apt-get update failed: $(tail -n 1 "$work/log")"; rm -r "$work"; return 1; }
    fi
    (cd "$work" && apt-get -o APT::Sandbox::User=root download "$package" > log 2>&1) || {
        echo "Debian package: apt-get download $package failed: $(tail -n 1 "$work/log")"
        [ "$(id -u)" = 0 ] || echo "  (only root can refresh the package lists: run \`apt-get update\` as root, then this again)"
        rm -r "$work"
        return 1
    }
    dpkg-deb -x "$work"/"$package"_*.deb "$work/files" || { echo "Debian package: dpkg-deb could not unpack it"; rm -r "$work"; return 1; }
    mkdir -p "$raw"
    sums | while read -r _ name; do
        find "$work/files" -name "$name.gz" -exec gzip -dc {} \; > "$raw/$name"
    done
    rm -r "$work"
}

whole && finish "was there already"

if why=$(from_torchvision 2>&1 > /dev/null); then
    whole && finish "fetched by torchvision"
    why="torchvision: what it fetched does not match the checksums"
else
    why=$(printf '%s\n' "$why" | tail -n 1)
    why=${why:-"torchvision: $python failed without a word"}
fi
echo "$why; trying the Debian package" >&2

if reason=$(from_debian); then
    whole && finish "fetched as Debian package $package"
    reason="Debian package: its files do not match the checksums"
fi
echo "get_fashion.sh: could not fetch Fashion-MNIST." >&2
echo "  $why" >&2
echo "  $reason" >&2
echo "  Put the four *-ubyte files (unpacked) into $raw yourself and run this again." >&2
exit 2
