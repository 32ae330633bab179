# Sourced by the scripts beside it: installs the Debian packages that are missing.

# What a build takes: the compiler, liburcu (lock-free bus look-up), libmd (MD5), Zydis (the soft engine's decoder),
# liburing (disks), libslirp (the network without rights), nasm (the tiny guests), cmocka (the unit tests).
build_packages="gcc libc6-dev meson ninja-build pkg-config liburcu-dev libmd-dev libzydis-dev liburing-dev
	libslirp-dev nasm libcmocka-dev"
# What makes a Debian system on a disk (tests/disk/make-image), and speaks to it.
disk_packages="mmdebstrap e2fsprogs xorriso openssh-client"
# What the tests take besides: the other compiler, what looks at our tables and pages, the nest in which skep meets
# real KVM (QEMU and busybox), and what the network is tested with.
test_packages="clang mandoc acpica-tools dmidecode qemu-system-x86 busybox-static $disk_packages passt iperf3
	iproute2"

# need_packages PACKAGE...: says which ones it is about to install, and installs them.
need_packages() {
	missing=
	for package in "$@"; do
		case $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) in
		installed) ;;
		*) missing="$missing $package" ;;
		esac
	done
	[ -n "$missing" ] || return 0
	echo "Installing Debian packages:$missing"

	sudo=
	if [ "$(id -u)" -ne 0 ]; then
		if ! command -v sudo >/dev/null; then
			echo "$0: installing packages takes root, and there is no sudo: run as root" \
				"apt-get install$missing" >&2
			exit 1
		fi
		sudo=sudo
	fi
	apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -q -y"
	if ! ls /var/lib/apt/lists/*_Packages* >/dev/null 2>&1; then
		$apt update >/dev/null
	fi
	# A list of packages that is too old names versions that are gone.
	# shellcheck disable=SC2086
	$apt install --no-install-recommends $missing >/dev/null ||
		{ $apt update >/dev/null && $apt install --no-install-recommends $missing >/dev/null; }
}

# build_in DIRECTORY [MESON-OPTION...]: configures it if need be, and builds: everything, or what $targets names.
build_in() {
	directory=$1
	shift
	[ -f "$directory/build.ninja" ] || meson setup "$directory" "$@" >"$directory.log" 2>&1 ||
		{ cat "$directory.log" >&2; rm -f "$directory.log"; return 1; }
	rm -f "$directory.log"
	# shellcheck disable=SC2086
	ninja -C "$directory" ${targets-}
}
