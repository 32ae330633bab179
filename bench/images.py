"""What is booted and run: a root directory with the benchmark program and copies of the host's programs, and a kernel."""
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import zlib

HERE = os.path.dirname(os.path.abspath(__file__))
PROGRAMS = ("gzip", "xz", "openssl")


def libraries(path):
    """The shared objects that a program of the host loads."""
    text = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
    return re.findall(r"(/\S+) \(0x", text)


def copy_program(root, path, name):
    shutil.copy(path, os.path.join(root, "bin", name))
    for lib in libraries(path):
        to = os.path.join(root, lib.lstrip("/"))
        os.makedirs(os.path.dirname(to), exist_ok=True)
        shutil.copy(lib, to)


def copy_python(root):
    """The interpreter and the modules that it loads to start."""
    python = os.path.realpath("/usr/bin/python3")
    copy_program(root, python, "python3")
    code = "import sys; print(*(getattr(m, a, '') or '' for m in sys.modules.values() for a in ('__file__', '__cached__')))"
    for path in subprocess.run([python, "-c", code], capture_output=True, text=True).stdout.split():
        if path.startswith("/usr/lib/python") and os.path.exists(path):
            to = os.path.join(root, path.lstrip("/"))
            os.makedirs(os.path.dirname(to), exist_ok=True)
            shutil.copy(path, to)
    lib = os.path.join("usr/lib", os.path.basename(python))
    shutil.copytree(f"/{lib}/encodings", os.path.join(root, lib, "encodings"), dirs_exist_ok=True)
    # What it looks for to know its prefix.
    shutil.copy(f"/{lib}/os.py", os.path.join(root, lib))
    os.makedirs(os.path.join(root, lib, "lib-dynload"), exist_ok=True)


def source_file(path):
    """About 5,000 lines of C, preprocessed: functions of loops, tables, switches and structs."""
    lines = []
    for i in range(280):
        lines.append(f"""
struct s{i} {{ int a[{i % 7 + 3}]; unsigned long b; struct s{i} *next; double d; }};
static unsigned f{i}(const struct s{i} *s, unsigned n)
{{
	unsigned sum = n * {i * 2654435761 % 65521}u;
	for (; s && n--; s = s->next) {{
		switch ((s->b + n) % {i % 5 + 4}) {{
		case 0: sum += s->a[n % {i % 7 + 3}]; break;
		case 1: sum ^= (unsigned)s->b << {i % 13}; break;
		case 2: sum -= (unsigned)(s->d * {i}.5); break;
		default: sum = sum >> 3 | sum << 29;
		}}
		for (unsigned k = 0; k < {i % 5 + 2}; k++)
			sum = sum * 33 + s->a[k % 3];
	}}
	return sum;
}}
unsigned g{i}(void *p, unsigned n) {{ return f{i}(p, n) + f{max(i - 1, 0)}((void *)((char *)p + 8), n / 2); }}""")
    with open(path, "w") as f:
        f.write("\n".join(lines) + "\n")


def text_file(path):
    """1.5 MB that compress like text: words of a small vocabulary, drawn by a fixed generator."""
    x, words, size = 1, [], 0
    while size < 3 << 19:
        x = (x * 6364136223846793005 + 1442695040888963407) & (1 << 64) - 1
        words.append(f"word{(x >> 40) % 997 * (x >> 60) % 1009}")
        size += len(words[-1]) + 1
    with open(path, "w") as f:
        f.write(" ".join(words))


def make_initrd(root, path):
    # Not compressed: unpacking is not what is measured.
    with open(path, "wb") as f:
        names = subprocess.run(["find", "."], cwd=root, capture_output=True).stdout
        subprocess.run(["cpio", "--quiet", "-o", "-H", "newc"], cwd=root, input=names, stdout=f, check=True)


def make_images(work):
    """The root directory with everything, its initrd, and the initrd with the benchmark program alone."""
    root, small = os.path.join(work, "root"), os.path.join(work, "small")
    for d in (root, small):
        shutil.rmtree(d, ignore_errors=True)
        os.makedirs(d)
    subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", os.path.join(small, "init"),
                    os.path.join(HERE, "rows.c"), "-lm"], check=True)
    for d in ("bin", "data", "tmp", "proc", "dev"):
        os.makedirs(os.path.join(root, d))
    shutil.copy(os.path.join(small, "init"), os.path.join(root, "init"))
    for name in PROGRAMS:
        copy_program(root, shutil.which(name), name)
    copy_python(root)
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True).stdout.strip()
    copy_program(root, cc1, "cc1")
    source_file(os.path.join(root, "data/source.i"))
    text_file(os.path.join(root, "data/text"))
    images = {"root": root, "full": os.path.join(work, "full.cpio"), "small": os.path.join(work, "small.cpio")}
    make_initrd(root, images["full"])
    make_initrd(small, images["small"])
    return images


def unpack_kernel(bzimage, path):
    """The vmlinux inside of a bzImage (Documentation/arch/x86/boot.rst, payload_offset)."""
    with open(bzimage, "rb") as f:
        data = f.read()
    setup = (data[0x1f1] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", data, 0x248)
    payload = data[setup + offset:setup + offset + length]
    if payload[:6] == b"\xfd7zXZ\0":
        elf = lzma.LZMADecompressor().decompress(payload)
    elif payload[:2] == b"\x1f\x8b":
        elf = zlib.decompressobj(31).decompress(payload)
    else:  # the last four bytes are the size (scripts/Makefile.lib, size_append)
        tool = "lz4" if payload[:4] == b"\x02!L\x18" else "zstd"
        elf = subprocess.run([tool, "-dc"], input=payload[:-4], capture_output=True).stdout
    if elf[:4] != b"\x7fELF":
        sys.exit("bench: cannot unpack the kernel")
    with open(path, "wb") as f:
        f.write(elf)
