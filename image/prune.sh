#!/bin/sh
# Removes from a production installation what no process reads: types, source maps, and the native parts of other
# platforms. Usage: prune.sh FOLDER PLATFORM
set -eu
folder=$1
platform=$2
find "$folder/node_modules" "$folder/dist" -type f \
  \( -name '*.d.ts' -o -name '*.d.mts' -o -name '*.d.cts' -o -name '*.map' \) -delete
for build in "$folder"/node_modules/zeromq/build/*/; do
  [ "$(basename "$build")" = "$platform" ] || rm -rf "$build"
done
# What a package needs to be built from source.
rm -rf "$folder/node_modules/zeromq/src" "$folder/node_modules/zeromq/script"
