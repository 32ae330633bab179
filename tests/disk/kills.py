#!/usr/bin/env python3
"""SIGKILL at a random moment while a guest writes records with fsync (writer.c): each that fsync confirmed is there in the
next life, and the file system recovers. A small Linux guest, so that a life takes seconds. Prints TAP.

  kills.py --skep PROGRAM --writer PROGRAM --cache DIRECTORY [--engine E] [--slow N] [--suite quick|long]

On the image as it is, where what the host's page cache holds outlives a killed process, and with test=volatile,
where only what was flushed does, as with a disk that loses its power. And once more on the thread pool, with sync.
skep runs as a user without rights.
"""

import argparse
import os
import pathlib
import random
import re
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / 'boot'))
import debian
import unprivileged

POWEROFF = 1
LIMIT = 60  # seconds for a guest to come up
MODULES = ('virtio_ring', 'virtio', 'virtio_pci_legacy_dev', 'virtio_pci_modern_dev', 'virtio_pci', 'virtio_blk')
CASES = ((1, ''), (1, ',test=volatile'), (2, ''), (2, ',test=volatile'), (1, ',aio=threads,sync'))
QUICK = CASES[:2]


class Failure(Exception):
    pass


def initrd(args, work):
    tree = debian.unpacked(args.cache, debian.kernel_package(args.cache, 'cloud-amd64'), 'amd64',
                           './lib/modules/*/kernel/drivers/virtio/*', './lib/modules/*/kernel/drivers/block/virtio_blk.ko')
    cpio = debian.Cpio()
    cpio.console()
    cpio.file('init', pathlib.Path(args.writer).read_bytes())
    for number, name in enumerate(MODULES):
        cpio.file(f'modules/{number}.ko', next(tree.rglob(f'{name}.ko')).read_bytes())
    path = work / 'initrd'
    path.write_bytes(cpio.bytes())
    return path


class Life:
    """One run of skep; its lines come as they are written."""

    def __init__(self, args, work, cpus, options, word=''):
        self.limit = LIMIT * args.slow
        self.lines, self.changed = [], threading.Condition()
        self.process = child.popen(
            [work / 'skep', '-q', '-E', args.engine, '-AHP', '-c', str(cpus), '-m', '128M', '-l', 'com1,stdio',
             '-s', f'3,virtio-blk,{work / "disk.img"}{options}', '--kernel', work / 'vmlinuz',
             '--initrd', work / 'initrd', '--append', f'console=ttyS0 quiet panic=-1 {word}'.strip(),
             f'kills-{os.getpid()}'], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            **unprivileged.popen())
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append(line.decode(errors='replace').strip())
                self.changed.notify_all()
        with self.changed:
            self.lines.append('')
            self.changed.notify_all()

    def number(self, word):
        """The last number that the guest said after a word, or None."""
        found = [int(match.group(1)) for match in (re.fullmatch(word + r' (\d+)', line) for line in self.lines) if match]
        return found[-1] if found else None

    def wait(self, word):
        end = time.monotonic() + self.limit
        with self.changed:
            while self.number(word) is None:
                if time.monotonic() > end or '' in self.lines[-1:] or not self.changed.wait(self.limit):
                    raise Failure(f'no "{word}": ' + '\n'.join(self.lines[-20:]))
            return self.number(word)

    def kill(self):
        self.process.kill()
        self.end()

    def end(self):
        status = self.process.wait(self.limit)
        self.reader.join()
        self.process.stdout.close()
        return status


def kills(args, work, cpus, options):
    rng = random.Random(os.getpid())
    subprocess.run(['/sbin/mke2fs', '-q', '-F', '-t', 'ext4', work / 'disk.img', '32M'], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    unprivileged.give(work)
    confirmed = 0
    for turn in range(args.kills + 1):
        life = Life(args, work, cpus, options, 'check' if turn == args.kills else '')
        try:
            kept = life.wait('kept')
            if kept < confirmed:
                raise Failure(f'life {turn}: fsync had confirmed {confirmed} records, {kept} are there')
            if turn < args.kills:
                life.wait('done')
                time.sleep(rng.uniform(0, 0.5))
        except BaseException:
            life.kill()
            raise
        if turn < args.kills:
            life.kill()
            confirmed = life.number('done') + 1
        elif life.end() != POWEROFF:
            raise Failure(f'status {life.process.returncode}: ' + '\n'.join(life.lines[-20:]))
    done = subprocess.run(['/sbin/e2fsck', '-fn', work / 'disk.img'], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise Failure('e2fsck: ' + done.stdout.decode(errors='replace')[-1000:])
    return confirmed


def main():
    parser = argparse.ArgumentParser()
    for name in ('--skep', '--writer'):
        parser.add_argument(name, required=True)
    parser.add_argument('--cache', type=pathlib.Path, required=True)
    parser.add_argument('--engine', default='soft')
    parser.add_argument('--slow', type=float, default=1)
    parser.add_argument('--suite', choices=('quick', 'long'), default='quick')
    args = parser.parse_args()
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    cases, args.kills = (QUICK, 5) if args.suite == 'quick' else (CASES, 100)
    failed = False
    print(f'1..{len(cases)}', flush=True)
    for number, (cpus, options) in enumerate(cases, 1):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix='skep-kills-', dir='/var/tmp') as name:
            work = pathlib.Path(name)
            try:
                initrd(args, work)
                places = unprivileged.prepare(work, skep=args.skep, kernel=debian.kernel(args.cache, 'cloud-amd64'))
                places['kernel'].rename(work / 'vmlinuz')
                confirmed = kills(args, work, cpus, options)
                print(f'ok {number} {args.kills} kills, {cpus} vCPUs{options}: {confirmed} records in {time.monotonic() - began:.0f} s',
                      flush=True)
            except (Failure, subprocess.TimeoutExpired) as error:
                failed = True
                print(f'not ok {number} kills{options}', flush=True)
                for line in str(error).split('\n'):
                    debian.note(line)
    return failed


if __name__ == '__main__':
    sys.exit(main())
