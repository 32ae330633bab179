#!/usr/bin/env python3
"""Debian's installer, as the package debian-installer-12-netboot-amd64 has it for booting from a network, on the serial
console: to its first question, with a network card on slirp and an empty disk of 4 GiB. Prints TAP.

  installer.py --skep PROGRAM --cache DIRECTORY [--engine E] [--slow N] [--cpus N]

Its kernel finds the card by itself. Modules for disks it fetches from a mirror, later; here the one for virtio-blk comes
in a second initial RAM disk, from the package of the same kernel, and is loaded in the installer's own shell. skep runs
as a user without rights.
"""

import argparse
import gzip
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'boot'))
import debian
import unprivileged

PACKAGE = 'debian-installer-12-netboot-amd64'
DISK = 4 << 30
ESCAPES = re.compile(rb'\x1b(\[[0-9;?]*[A-Za-z]|[()][0-9A-B])|[\x0e\x0f]')


class Failure(Exception):
    pass


class Console:
    def __init__(self, path, process, slow):
        self.process, self.slow, self.seen = process, slow, b''
        end = time.monotonic() + 10 * slow
        while not path.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.settimeout(1)

    def wait(self, pattern, limit):
        """What has come until `pattern` did, without the terminal's escapes."""
        end = time.monotonic() + limit * self.slow
        while time.monotonic() < end:
            text = ESCAPES.sub(b'', self.seen)
            if re.search(pattern, text):
                self.seen = b''
                return text.decode(errors='replace')
            try:
                part = self.socket.recv(65536)
            except TimeoutError:
                continue
            if not part:
                break
            self.seen += part
        raise Failure(f'no {pattern} within {limit * self.slow:.0f} s, but: {ESCAPES.sub(b"", self.seen)[-1500:]}')

    def send(self, text):
        self.socket.sendall(text)


def files(args, work):
    tree = debian.unpacked(args.cache, PACKAGE, 'all', '*/amd64/text/debian-installer/amd64/linux',
                           '*/amd64/text/debian-installer/amd64/initrd.gz')
    kernel, initrd = next(tree.rglob('linux')), next(tree.rglob('initrd.gz'))
    version = re.search(rb'lib/modules/([0-9.]+-[0-9]+-amd64)/', gzip.open(initrd).read()).group(1).decode()
    modules = debian.unpacked(args.cache, f'linux-image-{version}', 'amd64', '*/drivers/block/virtio_blk.ko')
    cpio = debian.Cpio()
    cpio.file('virtio_blk.ko', next(modules.rglob('virtio_blk.ko')).read_bytes())
    (work / 'module').write_bytes(cpio.bytes())
    return unprivileged.prepare(work, skep=args.skep, kernel=kernel, initrd=initrd)


def installer(args, work):
    with (work / 'disk.img').open('wb') as disk:
        disk.truncate(DISK)
    places = files(args, work)
    process = child.popen(
        [places['skep'], '-q', '-E', args.engine, '-AHP', '-c', str(args.cpus), '-m', '1536M', '-s', '0,hostbridge',
         '-s', '31,lpc', '-s', f'3,virtio-blk,{work / "disk.img"}', '-s', '4,virtio-net,slirp',
         '-l', f'com1,unix={work / "console"}', '--kernel', places['kernel'], '--initrd', places['initrd'],
         '--initrd', work / 'module', '--append', 'console=ttyS0', f'installer-{os.getpid()}'],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **unprivileged.popen())
    try:
        console = Console(work / 'console', process, args.slow)
        console.wait(rb'Select a language', 120)
        # screen(1)'s second window is a shell.
        console.send(b'\x012')
        time.sleep(2 * args.slow)
        console.send(b'\n')
        console.wait(rb'~ # ', 60)
        console.send(b'insmod /virtio_blk.ko; sleep 2; echo net=$(ls /sys/class/net); echo size=$(cat /sys/block/vda/size); '
                     b'dmesg | grep -E "vda|virtio"; echo e""nd\n')
        text = console.wait(rb'\nend', 60)
        if not re.search(r'net=.*enp0s4', text):
            raise Failure(f'no network card: {text}')
        if f'size={DISK // 512}' not in text:
            raise Failure(f'no disk of 4 GiB: {text}')
        if process.poll() is not None:
            raise Failure(f'skep ended with status {process.returncode}')
    finally:
        process.kill()
        process.communicate()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--skep', required=True)
    parser.add_argument('--cache', type=pathlib.Path, required=True)
    parser.add_argument('--engine', default='soft')
    parser.add_argument('--slow', type=float, default=1)
    parser.add_argument('--cpus', type=int, default=2)
    args = parser.parse_args()
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    print('1..1', flush=True)
    with tempfile.TemporaryDirectory(prefix='skep-installer-', dir='/var/tmp') as name:
        began = time.monotonic()
        try:
            installer(args, pathlib.Path(name))
        except Failure as error:
            print('not ok 1 the installer asks for a language', flush=True)
            for line in str(error).split('\n'):
                debian.note(line)
            return 1
        print(f'ok 1 the installer asks for a language ({time.monotonic() - began:.0f} s)', flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
