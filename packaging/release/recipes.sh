#!/bin/sh
# recipes.sh ARCHIVE DIST: writes the recipes that build dpsd from ARCHIVE, the source archive
# dpsd-VERSION.tar.gz, to DIST:
#
#   dpsd-VERSION-yocto.tar.gz      a layer for Yocto, from packaging/yocto
#   dpsd-VERSION-buildroot.tar.gz  an external tree for Buildroot, from packaging/buildroot
#
# It adds the values that differ for each version: the checksums of the archive and of the licenses
# in it, and the time of the source. The same archive produces the same bytes.
set -eu

[ $# = 2 ] || { echo "usage: recipes.sh ARCHIVE DIST" >&2; exit 2; }
archive=$1 dist=$2
name=${archive##*/}
name=${name%.tar.gz}
version=${name#dpsd-}
case ${archive##*/} in
dpsd-*.tar.gz) ;;
*) echo "recipes.sh: $archive must be named dpsd-VERSION.tar.gz" >&2; exit 2 ;;
esac
mkdir -p "$dist"
dist=$(cd "$dist" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022
export LC_ALL=C.UTF-8 TZ=UTC

sum() { sha256sum "$1" | cut -d' ' -f1; }
checksum=$(sum "$archive")
tar -x -z -f "$archive" -C "$work"
tree=$work/$name
built=$(stat -c %Y "$tree/LICENSE")

# pack NAME DIRECTORY: writes NAME with DIRECTORY of $work in it.
pack() {
	tar -c --format=ustar --sort=name --mtime="@$built" --owner=root:0 --group=root:0 --mode=u=rwX,go=rX -C "$work" "$2" |
		gzip -9 -n >"$dist/$1"
}

# licenses lists the licenses of dpsd and of the modules that are linked into it.
licenses() {
	echo LICENSE
	(cd "$tree" && GOFLAGS=-mod=vendor GOWORK=off GOOS=linux CGO_ENABLED=0 go list -tags nethttpomithttp2 -deps -f '{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}' ./cmd/dpsd) |
		sort -u | while read -r module; do
		(cd "$tree" && find "vendor/$module" -maxdepth 1 \( -name 'LICENSE*' -o -name 'NOTICE*' \) | sort)
	done
}
licenses >"$work/licenses"

layer=$work/meta-dpsd
cp -R "$tree/packaging/yocto" "$layer"
cp "$tree/LICENSE" "$layer/"
{
	printf 'require dpsd.inc\n\nLIC_FILES_CHKSUM = "'
	between=
	while read -r file; do
		# shellcheck disable=SC2016 # BitBake expands it
		printf '%sfile://src/${GO_IMPORT}/%s;md5=%s' "$between" "$file" "$(md5sum "$tree/$file" | cut -d' ' -f1)"
		between=' \
                    '
	done <"$work/licenses"
	printf '"\n\nSRC_URI[sha256sum] = "%s"\n\nDPSD_BUILT = "%s"\n' "$checksum" "$built"
} >"$layer/recipes-connectivity/dpsd/dpsd_$version.bb"
pack "$name-yocto.tar.gz" meta-dpsd

external=$work/dpsd-buildroot
cp -R "$tree/packaging/buildroot" "$external"
cp "$tree/LICENSE" "$external/"
package=$external/package/dpsd
{
	echo "# Computed by the release"
	echo "sha256  $checksum  $name.tar.gz"
	while read -r file; do echo "sha256  $(sum "$tree/$file")  $file"; done <"$work/licenses"
} >"$package/dpsd.hash"
files=
while read -r file; do
	files="$files \\\\\\n\\t$file"
done <"$work/licenses"
sed -e "s|@VERSION@|$version|" -e "s|@BUILT@|$built|" -e "s|@LICENSE_FILES@|${files# }|" "$package/dpsd.mk.in" >"$package/dpsd.mk"
rm "$package/dpsd.mk.in"
pack "$name-buildroot.tar.gz" dpsd-buildroot
