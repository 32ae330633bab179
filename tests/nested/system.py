#!/usr/bin/env python3
"""The Debian system of tests/disk, from its disk on the kvm engine, in the nest of nested.py: to its login prompt, and down
again by the power button. Prints TAP.

  system.py --skep PROGRAM --skepctl PROGRAM --probe PROGRAM --cache DIRECTORY [--keep FILE]

QEMU's TCG runs a guest of KVM's in it a hundred times slower than a CPU does: so one vCPU, and one CPU of the nest's, for
which QEMU needs not turn from one CPU to the next ten times a second, each time with a chance to deliver an interrupt twice
(see run() in nested.py: with two CPUs on one thread two of four runs ended in a panic by that, one had no prompt after 8
minutes); without the units that a system without a network can do without, and with limits of systemd's that let it take its
time. Skipped where the image cannot be built, see disk.py.
"""

import argparse
import os
import pathlib
import re
import select
import subprocess
import sys
import tempfile
import time

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / 'boot'), str(TESTS / 'disk'), str(TESTS / 'guests')]
import child  # noqa: E402
import debian  # noqa: E402
import disk  # noqa: E402
import guests  # noqa: E402
import nested  # noqa: E402

NAME = 'to the login prompt and down by the power button, on kvm'
LIMIT = 2400    # seconds to the login prompt
PRESS = 60      # seconds from one press of the button to the next: who minds it comes up about when the prompt does
PRESSES = 10
MASKED = ('systemd-networkd.service', 'systemd-networkd.socket', 'systemd-resolved.service', 'ssh.service', 'e2scrub_reap.service',
          'apt-daily.timer', 'apt-daily-upgrade.timer', 'dpkg-db-backup.timer', 'proc-sys-fs-binfmt_misc.automount',
          'systemd-binfmt.service')
# panic=-1: a kernel that gives up ends skep, and the test with it, and not its patience.
APPEND = 'root=LABEL=skep console=ttyS0 quiet nohz=off panic=-1 ' + ' '.join(f'systemd.mask={unit}' for unit in MASKED)
# With systemd's 90 seconds there was never a prompt: the serial port is a device of systemd's only when udev has come to it.
PATIENCE = '[Manager]\nDefaultTimeoutStartSec=30min\nDefaultDeviceTimeoutSec=30min\n'

INIT = nested.START + '''{command}
echo "@status $?"
sleep 60
'''


def patient_disk(files, work):
    """A copy of the disk, with limits for its units that fit the nest."""
    path = disk.copy_of(files, work)
    (work / 'patience').write_text(PATIENCE)
    (work / 'commands').write_text(f'mkdir /etc/systemd/system.conf.d\ncd /etc/systemd/system.conf.d\nwrite {work}/patience nest.conf\n')
    subprocess.run(['/sbin/debugfs', '-w', '-f', work / 'commands', path], check=True, stdout=subprocess.DEVNULL,
                   stderr=subprocess.DEVNULL)
    return path


def initramfs(args, files, modules, work):
    order = nested.in_order(modules, (*nested.MODULES, *nested.DISK_MODULES))
    cpio = nested.nest_cpio(args, {'skep': args.skep, 'skepctl': args.skepctl, 'probe_kvm': args.probe}, order, work)
    for name in ('vmlinuz', 'initrd.img'):
        cpio.file(name, (files / name).read_bytes(), 0o100644)
    command = nested.quote(['/skep', '-q', '-E', 'kvm', '-m', '512M', '-s', '3,virtio-blk,/dev/vda', '-s', '5,virtio-rnd', '-l',
                            'com1,stdio', '--kernel', '/vmlinuz', '--initrd', '/initrd.img', '--append', APPEND, 'system'])
    cpio.file('init', INIT.format(modules=' '.join(path.stem for path in order), command=command).encode())
    target = work / 'initramfs'
    target.write_bytes(cpio.bytes())
    return target


class Console:
    """Of the nest's second serial port, which is the guest's."""

    def __init__(self, nest, keep):
        self.nest, self.keep, self.said = nest, keep, b''

    def wait(self, pattern, limit):
        """The match, or None after `limit` seconds; Failure if the nest has ended."""
        end = time.monotonic() + limit
        while not (found := re.search(pattern, self.said)):
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.nest.stdout], [], [], left)[0]:
                return None
            data = os.read(self.nest.stdout.fileno(), 65536)
            if not data:
                raise disk.Failure(f'the nest ended: {self.tail()}')
            self.said += data
            if self.keep:
                self.keep.write_bytes(self.said)
        return found

    def send(self, data):
        self.nest.stdin.write(data)
        self.nest.stdin.flush()

    def tail(self):
        return self.said[-3000:].decode(errors='replace')


def login_and_down(console):
    began = time.monotonic()
    if not console.wait(rb'skep login: |@status', LIMIT) or b'@status' in console.said:
        raise disk.Failure(f'no login prompt: {console.tail()}')
    debian.note(f'the login prompt after {time.monotonic() - began:.0f} s')
    for _ in range(PRESSES):
        console.send(b'\x01cpowerbutton\r\x01c')
        found = console.wait(rb'@status (\d+)', PRESS)
        if found:
            if int(found.group(1)) != guests.POWEROFF:
                raise disk.Failure(f'status {int(found.group(1))}: {console.tail()}')
            return
    raise disk.Failure(f'the power button does nothing: {console.tail()}')


def run(args, files, work):
    vmlinuz, modules = nested.kernel(args.cache)
    image = initramfs(args, files, modules, work)
    command = [*nested.QEMU, '-smp', '1', '-m', '2G', '-drive', f'file={patient_disk(files, work)},if=none,id=disk,format=raw', '-device',
               'virtio-blk-pci,drive=disk', '-kernel', vmlinuz, '-initrd', image, '-append',
               'console=ttyS0 quiet panic=-1 tsc=reliable', '-serial', 'null', '-serial', 'stdio']
    nest = child.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        login_and_down(Console(nest, args.keep))
    finally:
        nest.kill()
        nest.communicate()


def main():
    parser = argparse.ArgumentParser()
    for name in ('--skep', '--skepctl', '--probe'):
        parser.add_argument(name, required=True)
    parser.add_argument('--cache', required=True, type=pathlib.Path)
    parser.add_argument('--keep', type=pathlib.Path)
    args = parser.parse_args()
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    print('1..1', flush=True)
    files, reason = disk.image(args.cache)
    if files is None:
        print(f'ok 1 {NAME} # SKIP {reason}')
        return 0
    with tempfile.TemporaryDirectory(prefix='skep-system-', dir='/var/tmp') as work:
        try:
            run(args, files, pathlib.Path(work))
        except disk.Failure as error:
            print(f'not ok 1 {NAME}')
            for line in str(error).splitlines():
                debian.note(line)
            return 1
    print(f'ok 1 {NAME}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
