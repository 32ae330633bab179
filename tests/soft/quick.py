#!/usr/bin/env python3
"""The quick files of the soft engine call quick code alone, and no libc: the guest's vector state is in the registers
while they run (engine/soft/cpu.h). quick.py LIBRARY: what its objects need of others must be in LEAVE below.
"""

import subprocess
import sys

# clock_gettime: the kernel's page of code that answers it has no vector instructions.
LEAVE = {'clock_gettime', '_GLOBAL_OFFSET_TABLE_'}
SANITIZERS = ('__asan_', '__ubsan_')


def symbols(library, which):
    output = subprocess.run(['nm', '--format=posix', which, library], stdout=subprocess.PIPE, text=True, check=True).stdout
    return {line.split()[0] for line in output.splitlines() if len(line.split()) > 1}


def main():
    library = sys.argv[1]
    found = [name for name in sorted(symbols(library, '-u') - symbols(library, '--defined-only'))
             if name not in LEAVE and not name.startswith(SANITIZERS)]
    for name in found:
        print(f'FAIL: quick code calls {name}')
    return 1 if found else 0


if __name__ == '__main__':
    sys.exit(main())
