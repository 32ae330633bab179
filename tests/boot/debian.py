"""What the tests that boot Linux share: Debian's packages, fetched by apt-get download into a cache and unpacked there
(nothing is installed), and initial RAM disks made of them."""

import lzma
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tempfile


def note(text):
    print(f'# {text}', flush=True)


class Cpio:
    """An initramfs in cpio's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst)."""

    def __init__(self):
        self.parts = []
        self.inode = 0
        self.directories = set()

    def entry(self, name, mode, data=b'', rdev=(0, 0)):
        self.inode += 1
        raw = name.encode() + b'\0'
        fields = (self.inode, mode, 0, 0, 1, 0, len(data), 0, 0, *rdev, len(raw), 0)
        head = b'070701' + b''.join(b'%08X' % field for field in fields) + raw
        self.parts.append(head + b'\0' * (-len(head) % 4) + data + b'\0' * (-len(data) % 4))

    def directory(self, name):
        if name and name not in self.directories:
            self.directory(os.path.dirname(name))
            self.directories.add(name)
            self.entry(name, 0o040755)

    def file(self, name, data, mode=0o100755):
        self.directory(os.path.dirname(name))
        self.entry(name, mode, data)

    def symlink(self, name, target):
        self.directory(os.path.dirname(name))
        self.entry(name, 0o120777, target.encode())

    def tree(self, root):
        """All that lies under a directory of the host's."""
        for path in sorted(root.rglob('*')):
            name = str(path.relative_to(root))
            if path.is_symlink():
                self.symlink(name, os.readlink(path))
            elif path.is_dir():
                self.directory(name)
            elif path.is_file():
                self.file(name, path.read_bytes(), 0o100000 | (path.stat().st_mode & 0o777))

    def console(self):
        self.directory('dev')
        self.entry('dev/console', 0o020600, rdev=(5, 1))

    def bytes(self):
        self.entry('TRAILER!!!', 0)
        return b''.join(self.parts)


def foreign_lists(cache):
    """Options that let apt answer for i386, with lists of packages of its own: the host's are left alone."""
    lists = cache / 'apt-i386'
    options = ['-o', 'APT::Architecture=i386', '-o', 'APT::Architectures=i386', '-o', f'Dir::State::lists={lists}',
               '-o', 'Dir::Cache::pkgcache=', '-o', 'Dir::Cache::srcpkgcache=']
    if not (lists / 'complete').exists():
        (lists / 'partial').mkdir(parents=True, exist_ok=True)
        # A source without i386 fails; whether the packages are there is seen when they are asked for.
        subprocess.run(['apt-get', '-q', *options, 'update'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (lists / 'complete').touch()
    return options


def apt_options(cache, arch):
    return [] if arch == 'amd64' else foreign_lists(cache)


def download(package, cache, arch='amd64'):
    """The .deb of a package, from the cache or by apt-get download."""
    for path in cache.glob(f'{package}_*_{arch}.deb'):
        return path
    note(f'downloading {package} ({arch})')
    options = apt_options(cache, arch)
    part = pathlib.Path(tempfile.mkdtemp(dir=cache))  # a cut-off download is never taken for a whole one
    try:
        subprocess.run(['apt-get', *options, 'download', '-q', package], cwd=part, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for path in part.glob('*.deb'):
            path.rename(cache / path.name)
    finally:
        shutil.rmtree(part)
    return next(cache.glob(f'{package}_*_{arch}.deb'))


def kernel_package(cache, flavour, arch='amd64'):
    """What linux-image-FLAVOUR stands for: the one in the cache, or the newest."""
    for path in cache.glob(f'linux-image-[0-9]*_{arch}.deb'):
        package = path.name.split('_')[0]
        if re.fullmatch(r'linux-image-[0-9.]+-[0-9]+-' + flavour, package):
            return package
    text = subprocess.run(['apt-cache', *apt_options(cache, arch), 'depends', f'linux-image-{flavour}'], check=True,
                          stdout=subprocess.PIPE, text=True).stdout
    return re.search(r'Depends: (linux-image-[0-9]\S+)', text).group(1)


def unpack(deb, into, *patterns):
    """The files of a .deb that match, under `into`."""
    into.mkdir(parents=True, exist_ok=True)
    tar = subprocess.Popen(['dpkg-deb', '--fsys-tarfile', deb], stdout=subprocess.PIPE)
    subprocess.run(['tar', '-x', '-C', into, '--wildcards', *patterns], stdin=tar.stdout, check=True)
    tar.stdout.close()
    tar.wait()


def unpacked(cache, package, arch, *patterns):
    """The directory with those files of a package that match."""
    deb = download(package, cache, arch)
    key = '+'.join(re.sub(r'[^A-Za-z0-9.-]', '', pattern) for pattern in patterns)
    tree = cache / f'{package}_{arch}_{key}'
    if not tree.exists():
        part = pathlib.Path(tempfile.mkdtemp(dir=cache))
        unpack(deb, part, *patterns)
        try:
            part.rename(tree)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return tree


def kernel(cache, flavour, arch='amd64'):
    """The bzImage of linux-image-FLAVOUR."""
    tree = unpacked(cache, kernel_package(cache, flavour, arch), arch, './boot/vmlinuz-*')
    return next((tree / 'boot').glob('vmlinuz-*'))


def module(cache, flavour, name, arch='amd64'):
    """A module of linux-image-FLAVOUR."""
    tree = unpacked(cache, kernel_package(cache, flavour, arch), arch, './lib/modules/*/kernel/drivers/acpi/*',
                    './lib/modules/*/kernel/drivers/input/*')
    return next(tree.rglob(f'{name}.ko'))


def vmlinux(bzimage):
    """The ELF kernel in a bzImage whose payload is compressed by xz, as all of Debian's but the cloud kernel's are
    (Documentation/arch/x86/boot.rst)."""
    data = bzimage.read_bytes()
    setup_sectors = data[0x1f1] or 4
    offset, length = struct.unpack_from('<II', data, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data[start:start + length])


def busybox(cache, arch='amd64'):
    path = pathlib.Path('/bin/busybox')
    if arch == 'amd64' and path.exists() and b'/lib64/ld-linux' not in path.read_bytes()[:4096]:
        return path
    return unpacked(cache, 'busybox-static', arch, '*/bin/busybox') / 'bin/busybox'


def libraries(program):
    """Shared libraries and the dynamic loader of a program, as (path it asks for, file)."""
    text = subprocess.run(['ldd', program], stdout=subprocess.PIPE, text=True).stdout
    for line in text.splitlines():
        match = re.search(r'(/\S+) \(0x', line)
        if match:
            yield match.group(1), pathlib.Path(match.group(1)).resolve()
