#!/usr/bin/env python3
"""A Debian system on a disk (make-image), booted from virtio-blk with virtio-net on slirp and spoken to by ssh, as a user
would. Prints TAP.

  disk.py --skep PROGRAM --cache DIRECTORY [--slow N] [--suite quick|long | TEST ...]

Skipped where the image cannot be built: that takes root, mmdebstrap and Debian's packages. It is built once.
"""

import argparse
import hashlib
import http.server
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child  # noqa: E402
import unprivileged  # noqa: E402

HERE = pathlib.Path(__file__).resolve().parent
REBOOT, POWEROFF = 0, 1


class Failure(Exception):
    pass


def image(cache, name='disk', options=('--include', 'fio,curl,gcc,libc6-dev,python3,iperf3,pciutils')):
    """The directory of an image, built if it is not there; None with the reason where it cannot be. It is named after what
    it is made of, so that another recipe makes another image."""
    recipe = repr(options).encode() + (HERE / 'make-image').read_bytes()
    where = cache / f'{name}-{hashlib.md5(recipe).hexdigest()[:8]}'
    if (where / 'complete').exists():
        return where, None
    if os.geteuid() != 0:
        return None, 'building an image takes root'
    wanted = ('mmdebstrap', 'mke2fs', 'ssh-keygen') + (('xorrisofs',) if '--iso' in options else ())
    missing = [p for p in wanted if not shutil.which(p, path=os.environ['PATH'] + ':/sbin')]
    if missing:
        return None, 'no ' + ', '.join(missing)
    where.mkdir(parents=True, exist_ok=True)
    built = subprocess.run([HERE / 'make-image', *options, where], timeout=900,
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if built.returncode != 0:
        return None, 'make-image failed: ' + built.stdout.decode(errors='replace').strip().split('\n')[-1]
    return where, None


def full_image(args):
    """With the kernel that has drivers for all, and as an ISO too."""
    files, reason = image(args.cache, 'disk-amd64', ('--kernel', 'linux-image-amd64', '--iso', '--include', 'pciutils'))
    if files is None:
        raise Failure(reason)
    return files


class Guest:
    """One VM. Its disk is a copy, or the image itself with writes thrown away. With user=True skep has no rights."""

    def __init__(self, args, work, disk, options='', cpus=1, more=(), device='virtio-blk', root='root=LABEL=skep', files=None,
                 name='disk', user=False):
        self.args, self.work, self.files = args, work, files or args.image
        skep, kernel, initrd = args.skep, self.files / 'vmlinuz', self.files / 'initrd.img'
        if user:
            skep, kernel, initrd = unprivileged.prepare(work, skep=skep, kernel=kernel, initrd=initrd).values()
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.host, self.port = '127.0.0.1', s.getsockname()[1]
        self.console = work / 'console.txt'
        self.console.unlink(missing_ok=True)
        self.errors = (work / 'stderr.txt').open('wb')
        self.process = child.popen(
            [skep, '-q', '-E', args.engine, '-AHP', '-c', str(cpus), '-m', '768M', '-s', '0,hostbridge', '-s', '31,lpc',
             '-s', f'3,{device},{disk}{options}',
             '-s', f'4,virtio-net,slirp,hostfwd=tcp:127.0.0.1:{self.port}-:22', '-s', '5,virtio-rnd', *more,
             '-l', f'com1,file={self.console}', '--kernel', kernel, '--initrd', initrd, '--append',
             f'{root} console=ttyS0', f'{name}-{os.getpid()}'],
            stdin=subprocess.DEVNULL, stdout=self.errors, stderr=subprocess.STDOUT, **(unprivileged.popen() if user else {}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.errors.close()

    def ssh_command(self, command):
        return ['ssh', '-q', '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'BatchMode=yes',
                '-o', 'ConnectTimeout=10', '-i', self.files / 'ssh-key', '-p', str(self.port), f'root@{self.host}', command]

    def ssh(self, command, limit=60, check=True):
        done = subprocess.run(self.ssh_command(command), timeout=limit * self.args.slow, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        text = done.stdout.decode(errors='replace')
        if check and done.returncode != 0:
            raise Failure(f'{command!r} in the guest: status {done.returncode}: {text[-2000:]}')
        return text

    def wait(self, limit=300):
        """Until somebody answers at ssh."""
        end = time.monotonic() + limit * self.args.slow
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise Failure(f'skep ended with status {self.process.returncode}: {self.stderr()}')
            try:
                if 'up' in self.ssh('echo up', 15, check=False):
                    return
            except subprocess.TimeoutExpired:
                pass
            time.sleep(0.5)
        raise Failure('nobody answers at ssh; the console: ' + self.console.read_text(errors='replace')[-2000:])

    def stderr(self):
        return (self.work / 'stderr.txt').read_text(errors='replace')

    def check_running(self):
        state = self.ssh('systemctl is-system-running --wait; systemctl --failed --no-legend', check=False)
        if state.strip() != 'running':
            raise Failure(f'the system: {state}')

    def end(self, how='poweroff', wanted=POWEROFF, limit=60):
        self.ssh(f'systemctl {how}', check=False)
        status = self.process.wait(limit * self.args.slow)
        if status != wanted:
            raise Failure(f'status {status} after systemctl {how}: {self.stderr()}')


def fsck(disk):
    done = subprocess.run(['/sbin/e2fsck', '-fn', disk], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        raise Failure(f'e2fsck: status {done.returncode}: {done.stdout.decode(errors="replace")[-2000:]}')


def copy_of(files, work, name='disk.img'):
    disk = work / name
    subprocess.run(['cp', '--sparse=always', '--reflink=auto', files / name, disk], check=True)
    return disk


class Server(http.server.BaseHTTPRequestHandler):
    data = random.Random(5).randbytes(32 << 20)

    def do_GET(self):
        self.send_response(200)
        self.send_header('Content-Length', str(len(self.data)))
        self.end_headers()
        self.wfile.write(self.data)

    def do_PUT(self):
        self.server.got = hashlib.md5(self.rfile.read(int(self.headers['Content-Length']))).hexdigest()
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_):
        pass


# What Debian's kernel says on a PC without a mouse, on every machine, and where the host is busy with other things.
KERNEL_WARNINGS = (r'PS/2 appears to have AUX port disabled|CONFIG_IMA_DISABLE_HTABLE|hrtimer: interrupt took|'
                   r'perf: interrupt took|clocksource: |'
                   # With noapic: that the SCI is level-triggered, which firmware would have told the PIC
                   r'ACPI: setting ELCR to 0200 |'
                   # No wireless in it, nor a file about it
                   r'regulatory\.0: |firmware_class: ')


def check_quiet(guest, virtio, ahci=0):
    """Neither the kernel nor lspci has anything to complain about."""
    lines = guest.ssh('dmesg --level=emerg,alert,crit,err,warn').splitlines()
    lines = [line for line in lines if line and not re.search(KERNEL_WARNINGS, line)]
    if lines:
        raise Failure('the kernel complains: ' + '\n'.join(lines))
    text = guest.ssh('lspci -vv 2>&1')
    for driver, wanted in (('virtio-pci', virtio), ('ahci', ahci)):
        if len(re.findall(rf'Kernel driver in use: {driver}$', text, re.M)) != wanted:
            raise Failure(f'lspci: {driver} does not have {wanted} devices: {text}')
    bad = re.search(r'.*(lspci:|pcilib:|access denied|!!!|<chain|disabled\]|virtual\]|ignored|unassigned).*', text)
    if bad:
        raise Failure(f'lspci complains: {bad.group(0)}')


def discards(guest, disk, image):
    """Discards between writes that are verified; afterwards all of the disk is given back to the host, and reads as zeros."""
    guest.ssh(f'fio --name=trim --filename={disk} --size=8M --rw=randtrimwrite --bs=64k --iodepth=32 --ioengine=libaio '
              '--direct=1 --verify=crc32c --verify_fatal=1 --minimal', 120)
    if image.stat().st_blocks == 0:
        raise Failure('fio wrote nothing')
    guest.ssh(f'blkdiscard {disk} && cmp -n {image.stat().st_size} {disk} /dev/zero')
    if image.stat().st_blocks != 0:
        raise Failure(f'after a discard of all of it the image has {image.stat().st_blocks} blocks')


def system(args, work):
    """Boots to a system without a failed unit, moves files by the network both ways, writes and reads back on the disk,
    compiles a program, powers off, and the file system is clean. A second disk runs full: the guest gets an I/O error,
    the VM lives, a line says what happened. A third, on a bus of its own, is discarded."""
    disk, spare, third = copy_of(args.image, work), work / 'spare.img', work / 'third.img'
    for path, size in ((spare, 64 << 20), (third, 16 << 20)):
        with path.open('wb') as f:
            f.truncate(size)
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f'http://10.0.2.2:{server.server_address[1]}/'
    with Guest(args, work, disk, cpus=2, user=True,
               more=['-s', f'6,virtio-blk,{spare},fault=write:ENOSPC:3', '-s', f'1:7:0,virtio-blk,{third}']) as guest:
        guest.wait()
        guest.check_running()
        check_quiet(guest, virtio=5)
        discards(guest, '/dev/vdc', third)
        console = guest.console.read_text(errors='replace')
        if 'skep login:' not in console:
            raise Failure('no login prompt on ttyS0')
        got = guest.ssh(f'curl -sf {url} | tee /var/tmp/file | md5sum', 120).split()[0]
        if got != hashlib.md5(Server.data).hexdigest():
            raise Failure('what curl got differs')
        guest.ssh(f'curl -sf -T /var/tmp/file {url}', 120)
        if server.got != got:
            raise Failure('what curl sent differs')
        for how in ('randwrite', 'write'):
            guest.ssh(f'cd /var/tmp && fio --name={how} --size=24M --rw={how} --bs=4k --iodepth=128 --ioengine=libaio '
                      '--direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 --minimal', 180)
        guest.ssh('fstrim /', check=False)
        text = guest.ssh("cd /var/tmp && echo 'int main(void) { return 42; }' >a.c && gcc -O a.c && ./a.out; echo $?", 120)
        if text.strip() != '42':
            raise Failure(f'gcc in the guest: {text}')
        text = guest.ssh('dd if=/dev/zero of=/dev/vdb bs=64k count=8 oflag=direct', check=False)
        if 'Input/output error' not in text and 'No space left' not in text:
            raise Failure(f'dd noticed nothing: {text}')
        guest.end()
        if not re.search(r'spare\.img: write of .*No space left on device', guest.stderr()):
            raise Failure(f'skep says nothing about the disk that is full: {guest.stderr()}')
        if re.search(r'error, dev vda|Remounting filesystem read-only|transmit queue.*timed out', console):
            raise Failure('the kernel complains about its devices')
    server.shutdown()
    fsck(disk)


WRITER = '''
import os, sys, zlib
f = os.open("/var/tmp/records", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
n = 0
while True:
    body = b"%d " % n
    body = body.ljust(508, b"x")
    os.write(f, body + zlib.crc32(body).to_bytes(4, "little"))
    os.fsync(f)
    sys.stdout.write("%d\\n" % n)
    sys.stdout.flush()
    n += 1
'''

READER = '''
import zlib
n = 0
with open("/var/tmp/records", "rb") as f:
    while True:
        b = f.read(512)
        if len(b) < 512 or not b.startswith(b"%d " % n) or zlib.crc32(b[:508]) != int.from_bytes(b[508:], "little"):
            break
        n += 1
print("records", n)
'''


def kills(args, work, count, options):
    """SIGKILL at a random moment while the guest writes records with fsync: those that were confirmed are there."""
    rng = random.Random(os.getpid())
    disk = copy_of(args.image, work)
    confirmed = 0
    for turn in range(count + 1):
        with Guest(args, work, disk, options, user=True) as guest:
            guest.wait()
            if turn:
                kept = int(re.search(r'records (\d+)', guest.ssh(f"python3 -c '{READER}'")).group(1))
                if kept < confirmed:
                    raise Failure(f'turn {turn}: {confirmed} records were confirmed, {kept} are there')
            if turn == count:
                guest.end('reboot', REBOOT)
                break
            writer = subprocess.Popen(guest.ssh_command(f"python3 -c '{WRITER}'"), stdin=subprocess.DEVNULL,
                                      stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            if not writer.stdout.readline():
                raise Failure('the writer writes nothing')
            time.sleep(rng.uniform(0.1, 2))
            guest.process.send_signal(signal.SIGKILL)
            guest.process.wait()
            lines = writer.stdout.read().split(b'\n')
            writer.wait()
            confirmed = int(lines[-2]) + 1 if len(lines) > 1 else 1
    fsck(disk)


def converse(args, path, text, wanted):
    """Says something to a console on a UNIX socket, and waits for the answer."""
    with socket.socket(socket.AF_UNIX) as port:
        port.settimeout(30 * args.slow)
        port.connect(str(path))
        port.sendall(text)
        seen = b''
        while wanted not in seen:
            try:
                part = port.recv(4096)
            except TimeoutError:
                raise Failure(f'no {wanted} on {path.name}, but {seen}') from None
            if not part:
                raise Failure(f'{path.name} closed after {seen}')
            seen += part


def ahci(args, work):
    """The system on a SATA disk, with a login prompt on hvc0 and a port with a name too, and a second controller with a
    disk and a CD drive; then on a CD with its writes in memory."""
    files = full_image(args)
    disk, hvc0, agent = copy_of(files, work), work / 'hvc0', work / 'agent'
    spare, disc = work / 'spare.img', work / 'disc.iso'
    disc.write_bytes(Server.data[:1 << 20])
    with spare.open('wb') as f:
        f.truncate(16 << 20)
    with Guest(args, work, disk, device='ahci-hd', files=files, cpus=2, user=True,
               more=['-s', f'6,virtio-console,console={hvc0},agent={agent}', '-s', f'7,ahci,hd:{spare},ser=SPARE,cd:{disc}']) as guest:
        guest.wait()
        guest.check_running()
        # By itself systemd starts one only where the driver is there from the beginning; Debian's is a module.
        guest.ssh('systemctl start serial-getty@hvc0')
        converse(args, hvc0, b'\n', b'login:')
        # What is said waits for somebody who listens.
        guest.ssh("nohup sh -c 'sleep 1; exec 0<>/dev/virtio-ports/agent; read word; echo you said $word >&0' >/dev/null 2>&1 &")
        converse(args, agent, b'hello\n', b'you said hello')
        got = guest.ssh('cd /dev/disk/by-id && dd if=/dev/sr0 of=ata-skep_SATA_disk_SPARE bs=64k oflag=direct 2>/dev/null && '
                        'cat /sys/block/$(basename $(readlink ata-skep_SATA_disk_SPARE))/device/queue_depth')
        if got.strip() != '32' or spare.read_bytes()[:1 << 20] != disc.read_bytes():
            raise Failure(f'from a CD to a disk of one controller, queue depth {got}')
        check_quiet(guest, virtio=3, ahci=2)
        guest.end()
    fsck(disk)
    with Guest(args, work, copy_of(files, work, 'cd.iso'), device='ahci-cd', files=files, user=True,
               root='root=/dev/sr0 rootfstype=iso9660 overlayroot=tmpfs') as guest:
        guest.wait()
        guest.check_running()
        check_quiet(guest, virtio=2, ahci=1)
        guest.end()


WIRES = "sed -n 's/.*IO-APIC.*fasteoi *//p' /proc/interrupts | grep -o 'virtio[0-9]*' | sort"


def transport(args, work, words, options, command, wanted, cpus=2):
    """The system by one way to reach its devices; what a command says is the proof that it is that way."""
    disk = copy_of(args.image, work)
    with Guest(args, work, disk, cpus=cpus, more=options, root=f'root=LABEL=skep {words}', user=True) as guest:
        guest.wait()
        guest.check_running()
        check_quiet(guest, virtio=3)
        got = ' '.join(guest.ssh(command).split())
        if got != wanted:
            raise Failure(f'{command!r} says {got!r}')
        guest.ssh('cd /var/tmp && fio --name=verify --size=24M --rw=randwrite --bs=4k --iodepth=128 --ioengine=libaio '
                  '--direct=1 --fsync=64 --verify=crc32c --verify_fatal=1 --minimal', 180)
        guest.end()
    fsck(disk)


def transports(args, work):
    """virtio's legacy interface; and interrupts by wire, to which Linux resorts where there is no MSI-X."""
    transport(args, work, 'virtio_pci.force_legacy=1', [], 'cut -c33 /sys/bus/virtio/devices/virtio*/features', '0 0 0')
    transport(args, work, '', ['-W'], WIRES, 'virtio0 virtio1 virtio2')


def routes(args, work):
    """Wires that do not lead where _PRT says: to the PIC by the LPC bridge's PIRQ registers, and, in a kernel without ACPI,
    to the I/O APIC by the MP table, which the cloud kernel does not read."""
    transport(args, work, 'noapic', ['-W'], "sed -n 's/.*XT-PIC  *//p' /proc/interrupts | grep -o 'virtio[0-9]*' | sort",
              'virtio0 virtio1 virtio2', cpus=1)
    files = full_image(args)
    with Guest(args, work, copy_of(files, work), files=files, cpus=2, more=['-W'], root='root=LABEL=skep acpi=off',
               user=True) as guest:
        guest.wait()
        guest.check_running()
        got = ' '.join(guest.ssh(WIRES).split())
        if got != 'virtio0 virtio1 virtio2':
            raise Failure(f'by the MP table: {got!r}')
        guest.end('reboot', REBOOT)


TESTS = {
    'system': (system, 'quick'),
    'kills-5': (lambda args, work: kills(args, work, 5, ''), 'long'),
    'kills-volatile': (lambda args, work: kills(args, work, 1, ',test=volatile'), 'quick'),
    'ahci': (ahci, 'long'),
    'transports': (transports, 'long'),
    'routes': (routes, 'long'),
    'kills-100': (lambda args, work: kills(args, work, 100, ''), 'long'),
    'kills-volatile-20': (lambda args, work: kills(args, work, 20, ',test=volatile'), 'long'),
}


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument('--skep', required=True)
    parser.add_argument('--cache', type=pathlib.Path, required=True)
    parser.add_argument('--engine', default='soft')
    parser.add_argument('--slow', type=float, default=1)
    parser.add_argument('--suite', choices=['quick', 'long'])
    parser.add_argument('tests', nargs='*')
    args = parser.parse_args()
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache))
    return args


def run_tests(args, tests, obstacle=None):
    """As TAP; all are skipped where there is no image, or something else in the way. True: one failed."""
    names = args.tests or [n for n, (_, suite) in tests.items() if suite == (args.suite or 'quick')]
    print(f'1..{len(names)}', flush=True)
    args.image, reason = (None, obstacle) if obstacle else image(args.cache)
    failed = False
    for number, name in enumerate(names, 1):
        if args.image is None:
            print(f'ok {number} {name} # SKIP {reason}', flush=True)
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix='skep-disk-', dir='/var/tmp') as work:
            try:
                tests[name][0](args, pathlib.Path(work))
                print(f'ok {number} {name} ({time.monotonic() - began:.0f} s)', flush=True)
            except (Failure, subprocess.TimeoutExpired) as error:
                failed = True
                print(f'not ok {number} {name}', flush=True)
                print('\n'.join('# ' + line for line in str(error).split('\n')), flush=True)
    return failed


if __name__ == '__main__':
    sys.exit(run_tests(arguments(), TESTS))
