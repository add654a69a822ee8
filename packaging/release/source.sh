#!/bin/sh
# source.sh VERSION DIST: writes the source archive, dpsd-VERSION.tar.gz, to DIST. The archive
# contains the files that git tracks, in their current state, and the required modules in
# vendor/. The top entry in its CHANGELOG.md has the version, packaging/revision contains the
# commit, and packaging/contents lists all files, so the archive builds the same packages as the
# clone. In a source archive, source.sh writes the same archive again.
set -eu

[ $# = 2 ] || { echo "usage: source.sh VERSION DIST" >&2; exit 2; }
version=$1 dist=$2
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
git() { command git -c safe.directory='*' "$@"; } # the clone and this script may belong to another user
umask 022
export LC_ALL=C.UTF-8 TZ=UTC

name=dpsd-$version
time=$(packaging/version time)
packaging/tree "$work/$name"
if [ -e .git ]; then
	git rev-parse HEAD >"$work/$name/packaging/revision"
	cd "$work/$name"
	GOFLAGS=-buildvcs=false go mod vendor
	: >packaging/contents # which lists itself
	find . ! -type d | LC_ALL=C sort >packaging/contents
fi
date=$(date -u -d "@$time" +%F)
sed -i "0,/^## \[[0-9].*/s//## [$version] - $date/" "$work/$name/CHANGELOG.md"
[ "$("$work/$name/packaging/version")" = "$version" ] || { echo "source.sh: the archive does not have the version $version" >&2; exit 1; }

tar -c --format=ustar --sort=name --mtime="@$time" --owner=root:0 --group=root:0 --mode=u=rwX,go=rX -C "$work" "$name" |
	gzip -9 -n >"$work/archive"
mv "$work/archive" "$dist/$name.tar.gz"
chmod 644 "$dist/$name.tar.gz"
