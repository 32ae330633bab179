#!/usr/bin/env python3
"""Real programs from Debian's packages in a Linux guest of two vCPUs, each judged by its own checks. Prints TAP, one line a part.

  programs.py --skep PROGRAM --cache DIRECTORY [--engine E] [--slow N] [--keep FILE] (--suite quick|long | PART ...)
"""

import argparse
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import child  # noqa: E402
import debian  # noqa: E402

POWEROFF = 1
PACKAGES = ('libc-bin', 'openssl', 'gcc', 'libc6-dev', 'gdb', 'stress-ng', 'python3', 'libpython3.11-testsuite')
# Not for these programs: what would only fill the guest's memory.
LEFT_OUT = ('./usr/share/doc*', './usr/share/man*', './usr/share/locale*', './usr/share/info*', './usr/share/icons*',
            './usr/share/perl*', './usr/lib/*/perl*', './usr/lib/x86_64-linux-gnu/libLLVM*', './usr/lib/*/dri/*',
            './usr/lib/gcc/*/lto1', './usr/lib/gcc/*/lib*san*', './usr/lib/x86_64-linux-gnu/lib*san.so*',
            './usr/lib/gcc/*/libgomp*', './usr/lib/x86_64-linux-gnu/lib*_p.a',
            './usr/share/dpkg*', './usr/lib/python3*/idlelib*', './usr/share/X11*')
PATTERN = bytes(i * i % 251 for i in range(1 << 16)) * 16
DIGESTS = ('md5', 'sha1', 'sha256', 'sha512', 'sha3-256', 'blake2b512', 'sm3')

INIT = r'''#!/bin/busybox sh
export PATH=/usr/bin:/bin:/usr/sbin:/sbin:/busybox HOME=/root LANG=C.UTF-8 TERM=dumb
/bin/busybox mkdir -p /busybox /proc /sys /tmp /root
/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
ip link set lo up
stty -onlcr
cd /tmp
for part in $(sed -n 's/.*skep\.parts=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' '); do
	echo "t:begin=$part"
	begin=$(cut -d' ' -f1 /proc/uptime)
	sh -e /parts/$part </dev/null 2>&1
	echo "t:$part=$? $begin $(cut -d' ' -f1 /proc/uptime)"
done
dmesg | grep -E 'segfault|traps:|BUG|WARNING|Oops|general protection' | sed 's/^/t:dmesg=/'
poweroff -f
sleep 60
'''

# Every code path that libcrypto has for this CPU gives the same: with all its instructions, without SHA's, AVX-512's, AVX's,
# AES's, with none at all (OPENSSL_ia32cap(3)).
OPENSSL = r'''
for cap in %(paths)s; do
	if [ $cap = all ]; then unset OPENSSL_ia32cap; else export OPENSSL_ia32cap=$cap; fi
	for d in %(digests)s; do
		echo "sum $cap $d $(openssl dgst -r -$d /pattern | cut -d' ' -f1)"
	done
	for c in aes-128-cbc aes-256-ctr camellia-256-cbc chacha20 aria-128-ctr; do
		openssl enc -$c -K $(printf %%064d 7 | cut -c1-$(case $c in *128*) echo 32;; *) echo 64;; esac)) -iv $(printf %%032d 9) \
			-in /pattern -out enc
		echo "enc $c $(md5sum <enc)"
		openssl enc -d -$c -K $(printf %%064d 7 | cut -c1-$(case $c in *128*) echo 32;; *) echo 64;; esac)) -iv $(printf %%032d 9) \
			-in enc | cmp - /pattern
	done
	for key in "RSA -pkeyopt rsa_keygen_bits:1024" "EC -pkeyopt ec_paramgen_curve:P-256" \
		"EC -pkeyopt ec_paramgen_curve:P-384" ED25519 ED448; do
		openssl genpkey -algorithm $key -out key.pem 2>/dev/null
		openssl pkey -in key.pem -check -noout
		openssl pkey -in key.pem -pubout -out pub.pem
		head -c 1000 /pattern >small
		raw=
		case $key in ED*) raw=-rawin ;; *) openssl dgst -sha256 -binary /pattern >small ;; esac
		openssl pkeyutl -sign -inkey key.pem $raw -in small -out sig
		openssl pkeyutl -verify -pubin -inkey pub.pem $raw -in small -sigfile sig
		printf x | dd of=small bs=1 seek=5 conv=notrunc 2>/dev/null
		! openssl pkeyutl -verify -pubin -inkey pub.pem $raw -in small -sigfile sig
	done
done >out
sort -u out | grep '^enc' | cut -d' ' -f2 | uniq -d | sed 's/^/differs: /'
grep '^sum' out
[ "$(grep -c 'Signature Verified Successfully' out)" = $((5 * $(set -- %(paths)s; echo $#))) ]
[ "$(grep '^enc' out | sort -u | wc -l)" = 5 ]
'''
PATHS = ('all', '0:0', ':~0x20000000', ':~0xdc230000', '~0x1000000000000000:0', '~0x200000200000000:0')

SPEED = r'''
for what in %s; do
	openssl speed -mr -seconds 1 $what 2>&1 | tee out | grep '^+F'
	! grep -iE 'fail|error' out
done
openssl speed -multi 2 -seconds 1 sha256 2>&1 | tail -n 2
'''

PROGRAM_C = r'''
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return x < y ? -1 : x > y;
}

static uint64_t fib(unsigned n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long locked, atomic;

static void *count(void *arg)
{
	for (int i = 0; i < 20000; i++) {
		pthread_mutex_lock(&lock);
		locked++;
		pthread_mutex_unlock(&lock);
		__atomic_fetch_add(&atomic, 1, __ATOMIC_SEQ_CST);
	}
	return arg;
}

static jmp_buf env;
static volatile int caught;

static void on_fault(int signo, siginfo_t *info, void *context)
{
	caught++;
	siglongjmp(env, 1);
}

int main(void)
{
	static uint32_t v[100000];
	uint32_t x = 1;
	double sum = 0;
	pthread_t t[4];
	struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};

	for (unsigned i = 0; i < 100000; i++)
		v[i] = x = x * 1664525 + 1013904223;
	qsort(v, 100000, sizeof(v[0]), by_value);
	printf("sorted %08x %08x\n", v[0], v[50000]);
	printf("fib %llu\n", (unsigned long long)fib(24));
	for (int i = 1; i < 10000; i++)
		sum += sin(i) * sqrt(i) / (1 + exp(-i * 0.001));
	printf("float %.9g %.12Lg\n", sum, 1.0L / 3 + powl(2, 0.5L));
	for (int i = 0; i < 4; i++)
		pthread_create(&t[i], NULL, count, NULL);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	printf("threads %ld %ld\n", locked, atomic);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGFPE, &action, NULL);
	sigaction(SIGILL, &action, NULL);
	if (!sigsetjmp(env, 1))
		*(volatile int *)8 = 1;
	if (!sigsetjmp(env, 1)) {
		volatile int zero = 0;
		caught += 100 / zero;
	}
	if (!sigsetjmp(env, 1))
		__builtin_trap();
	printf("signals %d\n", caught);
	return 0;
}
'''

GCC = r'''
for options in %s; do
	gcc $options -pthread -o prog /program.c -lm
	./prog >out
	cat out
done
'''

GDB = r'''
gcc -g -O0 -o prog /gdb.c
gdb -nx -batch -x /gdb.cmd ./prog 2>&1 | tee out
'''

GDB_C = r'''
#include <stdio.h>

int counter;

static int twice(int n)
{
	int r = n * 2;
	counter += r;
	return r;
}

int main(void)
{
	int total = 0;
	for (int i = 0; i < 50; i++)
		total += twice(i);
	printf("total %d\n", total);
	return total == 2450 ? 7 : 1;
}
'''

GDB_COMMANDS = r'''
set pagination off
set confirm off
set disable-randomization on
break twice if n == 10
run
printf "says n %d\n", n
backtrace
next
next
printf "says counter %d\n", counter
finish
delete
stepi
stepi
info registers rip
set $before = $pc
stepi
printf "says moved %d\n", $pc != $before
watch counter
continue
printf "says watched %d\n", counter
continue
printf "says watched %d\n", counter
delete
rwatch counter
continue
delete
set can-use-hw-watchpoints 0
watch counter
continue
printf "says stepped over %d\n", counter
delete
hbreak twice if n == 20
continue
printf "says hardware %d\n", n
delete
set var n = 1020
set $i = 0
while $i < 50
stepi
set $i = $i + 1
end
printf "says stepped %d\n", $i
continue
printf "says exit %d\n", $_exitcode
'''
GDB_SAYS = ('says n 10', 'says counter 110', 'says moved 1', 'says watched 132', 'says watched 156', 'says stepped over 182', 'says hardware 20',
            'says stepped 50', 'says exit 1')

BIT32 = r'''
b=/i386/busybox
echo "class $($b od -An -tu1 -j4 -N1 $b)"
echo "sum $($b sha256sum </pattern | cut -d' ' -f1)"
echo "sum5 $($b sha512sum </pattern | cut -d' ' -f1)"
echo "gzip $($b gzip -c /pattern | $b gunzip -c | $b md5sum | cut -d' ' -f1)"
echo "sorted $($b seq 1 20000 | $b sort -r -n | $b md5sum | cut -d' ' -f1)"
echo "awk $($b awk 'BEGIN { for (i = 1; i < 20000; i++) s += 1 / i; printf "%.10f", s }')"
echo "loop $($b sh -c 'i=0; while [ $i -lt 20000 ]; do i=$((i + 3)); done; echo $i')"
$b tar -c -f - -C /usr/include . | $b tar -t -f - | $b wc -l
$b vi -h >/dev/null 2>&1 || true
'''

STRESS = 'stress-ng --verify --metrics-brief --timestamp %s\n'


def python(*tests):
    return f'python3 -m test -w {" ".join(tests)}\n'


class Part:
    def __init__(self, script, limit=60, wanted=(), forbidden=()):
        self.script, self.limit, self.wanted, self.forbidden = script, limit, wanted, forbidden


def sorted_sum():
    return hashlib.md5(b''.join(b'%d\n' % i for i in range(20000, 0, -1))).hexdigest()


def digests():
    for name in DIGESTS:
        try:
            yield name, hashlib.new(name) if name != 'blake2b512' else hashlib.blake2b()
        except ValueError:
            continue


def openssl(paths):
    wanted = []
    for name, digest in digests():
        digest.update(PATTERN)
        wanted.append((f'{name} {digest.hexdigest()}', len(paths)))
    return Part(OPENSSL % {'digests': ' '.join(DIGESTS), 'paths': ' '.join(paths)}, 120, wanted, ('differs',))


def gcc(*options):
    values, x = [], 1
    for _ in range(100000):
        x = (x * 1664525 + 1013904223) & 0xffffffff
        values.append(x)
    values.sort()
    said = (f'sorted {values[0]:08x} {values[50000]:08x}', 'fib 46368', 'float 102.719813 1.74754689571',
            'threads 80000 80000', 'signals 3')
    return Part(GCC % ' '.join(f'"{words}"' for words in options), 120, [(text, len(options)) for text in said], ('error',))


def wanted_32():
    yield 'class    1', 1
    yield f'sum {hashlib.sha256(PATTERN).hexdigest()}', 1
    yield f'sum5 {hashlib.sha512(PATTERN).hexdigest()}', 1
    yield f'gzip {hashlib.md5(PATTERN).hexdigest()}', 1
    yield f'sorted {sorted_sum()}', 1
    yield f'awk {sum(1 / i for i in range(1, 20000)):.10f}', 1
    yield 'loop 20001', 1


GDB_WANTED = [(text, 1) for text in GDB_SAYS]
STRESSED = ([('successful run completed', 1)], ('fail:', 'error:'))
PYTHON = ([('Tests result: SUCCESS', 1)], ('FAILED',))
PARTS = {
    'gcc-quick': gcc('-O2'),
    'gcc': gcc('-O0', '-O2', '-O3 -march=native', '-O2 -static', '-O2 -fsanitize=undefined -fsanitize-undefined-trap-on-error '
               '-fno-sanitize=null,integer-divide-by-zero'),
    'gdb': Part(GDB, 120, GDB_WANTED),
    'openssl-quick': openssl(PATHS[:1]),
    'openssl': openssl(PATHS),
    'static32': Part(BIT32, 30, list(wanted_32())),
    'python-quick': Part(python('test_int', 'test_struct'), 60, *PYTHON),
    'stress-quick': Part(STRESS % '--cpu 1 --vm 1 --vm-bytes 32M --fork 1 --signal 1 --timer 1 -t 4', 60, *STRESSED),
    'speed': Part(SPEED % '"-evp md5" "-evp sha1" "-evp sha256" "-evp sha512" "-evp sha3-256" "-evp aes-128-cbc" '
                  '"-evp aes-256-gcm" "-evp aes-256-ctr" "-evp chacha20-poly1305" "-evp camellia-128-cbc" rsa1024 rsa2048 '
                  'rsa4096 dsa2048 ecdsap256 ecdsap384 ecdsap521 ecdhx25519 ecdhp256 ed25519 ed448 ghash rand', 400,
                  [('+F', 20)]),
    'python': Part(python('test_int', 'test_float', 'test_struct', 'test_threading', 'test_subprocess'), 900, *PYTHON),
    'stress-cpu': Part(STRESS % '--cpu 2 -t 60', 120, *STRESSED),
    'stress-vm': Part(STRESS % '--vm 2 --vm-bytes 128M -t 40', 120, *STRESSED),
    'stress-fork': Part(STRESS % '--fork 2 -t 15', 60, *STRESSED),
    'stress-signal': Part(STRESS % '--signal 2 --sigsegv 2 --sigfpe 2 -t 15', 60, *STRESSED),
    'stress-timer': Part(STRESS % '--timer 2 -t 15', 60, *STRESSED),
    'stress-all': Part(STRESS % '--cpu 2 --vm 2 --vm-bytes 64M --fork 2 --signal 2 --timer 2 -t 30', 120, *STRESSED),
}
SUITES = {
    'quick': ('gcc-quick', 'gdb', 'openssl-quick', 'static32', 'python-quick', 'stress-quick'),
    'long': ('gcc', 'gdb', 'openssl', 'static32', 'speed', 'python', 'stress-cpu', 'stress-vm', 'stress-fork',
             'stress-signal', 'stress-timer', 'stress-all'),
}


def closure(packages):
    """NAME=VERSION of the packages and all they depend on, as apt would install them on an empty system."""
    with tempfile.NamedTemporaryFile() as status:
        text = subprocess.run(['apt-get', '-o', f'Dir::State::status={status.name}', '-o', 'APT::Install-Recommends=0', '-o',
                               'Debug::NoLocking=1', '--simulate', 'install', *packages], check=True, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True).stdout
    return re.findall(r'^Inst (\S+) \((\S+)', text, re.M)


def fetch(cache, packages):
    """The .debs, downloaded in one go."""
    store = cache / 'programs-debs'
    if not store.exists():
        part = pathlib.Path(tempfile.mkdtemp(dir=cache))
        debian.note(f'downloading {len(packages)} packages')
        subprocess.run(['apt-get', 'download', '-q', *(f'{name}={version}' for name, version in packages)], cwd=part, check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            part.rename(store)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return sorted(store.glob('*.deb'))


def tree(debs, root):
    """All of the packages unpacked, with /bin, /sbin and /lib in /usr, as on every Debian of today."""
    for name in ('bin', 'sbin', 'lib', 'lib64'):
        (root / 'usr' / name).mkdir(parents=True)
        (root / name).symlink_to(f'usr/{name}')
    for deb in debs:
        tar = subprocess.Popen(['dpkg-deb', '--fsys-tarfile', deb], stdout=subprocess.PIPE)
        subprocess.run(['tar', '-x', '--keep-directory-symlink', '--no-same-owner', '-C', root,
                        *(f'--exclude={pattern}' for pattern in LEFT_OUT)], stdin=tar.stdout, check=True)
        tar.stdout.close()
        tar.wait()


def base(cache):
    """An initial RAM disk with the programs, without an init: the kernel unpacks several, one after another."""
    path = cache / 'programs.cpio'
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache) as name:
            root = pathlib.Path(name) / 'root'
            tree(fetch(cache, closure(PACKAGES)), root)
            cpio = debian.Cpio()
            cpio.console()
            cpio.tree(root)
            part = pathlib.Path(name) / 'cpio'
            part.write_bytes(cpio.bytes())
            part.rename(path)
    return path


def initrd(cache, path):
    cpio = debian.Cpio()
    cpio.file('bin/busybox', debian.busybox(cache).read_bytes())
    cpio.symlink('bin/sh', 'busybox')
    cpio.file('i386/busybox', debian.busybox(cache, 'i386').read_bytes())
    cpio.file('init', INIT.encode())
    cpio.file('pattern', PATTERN)
    cpio.file('program.c', PROGRAM_C.encode())
    cpio.file('gdb.c', GDB_C.encode())
    cpio.file('gdb.cmd', GDB_COMMANDS.encode())
    cpio.file('etc/passwd', b'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n')
    cpio.file('etc/group', b'root:x:0:\nnogroup:x:65534:\n')
    for name, part in PARTS.items():
        cpio.file(f'parts/{name}', part.script.encode())
    path.write_bytes(cpio.bytes())


def run(args, parts, work):
    initrd(args.cache, work / 'initrd')
    limit = (60 + sum(PARTS[name].limit for name in parts)) * args.slow
    command = [args.skep, '-q', '-E', args.engine, '-c', '2', '-m', '1536M', '-s', '3,virtio-rnd', '-l', 'com1,stdio', '--kernel', debian.kernel(args.cache, 'cloud-amd64'), '--initrd', base(args.cache),
               '--initrd', work / 'initrd', '--append', f'console=ttyS0 panic=-1 quiet skep.parts={",".join(parts)}',
               f'programs-{os.getpid()}']
    output, status, took = child.output(command, limit, args.keep)
    debian.note(f'{took:.1f} s in all')
    return status, output.replace('\r', '')


def problems(name, output):
    part = PARTS[name]
    match = re.search(rf'^t:begin={name}$(.*?)^t:{name}=(\d+) ([\d.]+) ([\d.]+)$', output, re.M | re.S)
    if not match:
        yield 'did not come to its end'
        return
    text, status = match.group(1), int(match.group(2))
    debian.note(f'{name}: {float(match.group(4)) - float(match.group(3)):.1f} s')
    if status:
        yield f'exit status {status}'
    for wanted, times in part.wanted:
        if text.count(wanted) < times:
            yield f'{wanted!r}: {text.count(wanted)} times, not {times}'
    for word in part.forbidden:
        if word in text:
            yield f'says {word!r}'


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--skep', type=os.path.abspath)
    parser.add_argument('--cache', type=pathlib.Path)
    parser.add_argument('--engine', default='soft')
    parser.add_argument('--slow', type=float, default=1)
    parser.add_argument('--suite', choices=SUITES)
    parser.add_argument('--keep', type=pathlib.Path)
    parser.add_argument('parts', nargs='*')
    args = parser.parse_args()
    parts = SUITES[args.suite] if args.suite else args.parts
    args.cache = pathlib.Path(os.environ.get('SKEP_TEST_CACHE', args.cache)).resolve()
    args.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='skep-programs-') as work:
        try:
            status, output = run(args, parts, pathlib.Path(work))
        except (OSError, subprocess.CalledProcessError, StopIteration, AttributeError) as error:
            print(f'Bail out! apt-get update, and a Debian mirror in reach? {error!r}')
            return 1
    failed = False
    for number, name in enumerate(parts, 1):
        found = list(problems(name, output))
        failed |= bool(found)
        print(f'{"not ok" if found else "ok"} {number} - {name}')
        for text in found:
            debian.note(text)
    kernel = re.findall(r'^t:dmesg=(?!.*(?:prog|stress-ng|python3)\[)(.*)', output, re.M)
    whole = status == POWEROFF and not kernel
    print(f'{"ok" if whole else "not ok"} {len(parts) + 1} - the guest powers off, its kernel has no complaint')
    for text in [f'exit status {status}', *kernel] if not whole else ():
        debian.note(text)
    if failed or not whole:
        for text in output.splitlines()[-80:]:
            debian.note('| ' + text)
    print(f'1..{len(parts) + 1}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
