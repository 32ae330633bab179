"""From the rounds' raw figures to medians, ratios, the table and the chart. Nothing here measures."""
import math
import statistics
from xml.sax.saxutils import escape

INTEGER = ["loop", "crc", "calls", "qsort", "gzip", "python-loop"]
NATIVE_LIKE = ["dgemm", "sincos", "simdcopy", "aes-gcm", "sha256"]
KERNEL = ["syscall", "signal", "pagefault", "mmap", "fork", "exec", "pipe"]
OTHER = ["chase64k", "chase256m", "stride", "thread", "futex", "timer", "xz", "python-start", "gcc-again"]
# Programs of the host: bench/where need not repeat them.
PROGRAMS = ["gzip", "xz", "aes-gcm", "sha256", "python-start", "python-loop", "gcc", "gcc-again"]
# Measured by the program inside of a guest, in this order; the whole-system rows, by bench/run itself.
GUEST_ROWS = INTEGER + NATIVE_LIKE + ["memcpy", "chase8m"] + KERNEL + ["gcc"] + OTHER + ["scale"]
HOST_ROWS = ["boot-bzimage", "boot-vmlinux", "start", "idle", "rss", "two-vms", "mix4"]
ROWS = GUEST_ROWS + HOST_ROWS

# row (or "integer", the geometric mean; "boot", the better of the two): at most this times native's figure, at most
# this times QEMU's, or a figure of its own.
BARS = [("integer", 2.0, 1 / 3, None)]
BARS += [(row, 1.5, None, None) for row in NATIVE_LIKE]
BARS += [("memcpy", 1.2, None, None), ("chase8m", 3.0, None, None)]
BARS += [(row, None, 0.6, None) for row in KERNEL]
BARS += [("gcc", 3.0, 0.4, None), ("boot", None, 0.4, None), ("start", None, None, 20e6),
         ("scale", 1 / 0.95, None, None), ("idle", None, None, 1.0), ("rss", None, None, 10.0)]


# ---- figures -----------------------------------------------------------------------------------------------------

def paired(rounds, row, a, b):
    """The ratios a : b of the rounds that have both."""
    return [r[a][row] / r[b][row] for r in rounds if row in r.get(a, {}) and row in r.get(b, {})]


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(rounds, engines, guest="soft"):
    """For each row the spread of each engine's figures and of the rounds' own ratios."""
    rows = {}
    for row in ROWS:
        entry = {}
        for engine in engines:
            values = [r[engine][row] for r in rounds if row in r.get(engine, {})]
            if values:
                entry[engine] = spread(values)
        for a, b in ((guest, "native"), (guest, "qemu"), ("qemu", "native"), ("kvm", "native")):
            ratios = paired(rounds, row, a, b)
            if ratios:
                entry[f"{a}/{b}"] = spread(ratios)
        if entry:
            rows[row] = entry
    derive(rows, rounds, engines)
    return rows


def derive(rows, rounds, engines):
    """The geometric mean of the integer rows, and the better of an engine's boots."""
    entry = {}
    for ratio in ("soft/native", "soft/qemu", "qemu/native"):
        values = [rows[r][ratio]["median"] for r in INTEGER if ratio in rows.get(r, {})]
        if len(values) == len(INTEGER):
            entry[ratio] = {"median": math.exp(sum(map(math.log, values)) / len(values))}
    if entry:
        rows["integer"] = entry
    best = [{e: {"boot": min(boots)} for e in engines if (boots := boots_of(r.get(e, {})))} for r in rounds]
    entry = {}
    for engine in engines:
        values = [r[engine]["boot"] for r in best if engine in r]
        if values:
            entry[engine] = spread(values)
    ratios = paired(best, "boot", "soft", "qemu")
    if ratios:
        entry["soft/qemu"] = spread(ratios)
    if entry:
        rows["boot"] = entry


def boots_of(figures):
    return [figures[row] for row in ("boot-bzimage", "boot-vmlinux") if row in figures]


def verdict(rows, bar):
    """("met", "MISSED" or "not measured", the bar in words)"""
    row, native, tcg, absolute = bar
    entry, texts, met, known = rows.get(row, {}), [], True, True
    for limit, ratio in ((native, "soft/native"), (tcg, "soft/qemu")):
        if limit is None:
            continue
        texts.append(f"<= {limit:.2f}x {ratio.split('/')[1]}")
        known &= ratio in entry
        met &= ratio in entry and entry[ratio]["median"] <= limit
    if absolute is not None:
        texts.append("<= " + quantity(row, absolute))
        known &= "soft" in entry
        met &= "soft" in entry and entry["soft"]["median"] <= absolute
    return ("met" if met else "MISSED") if known else "not measured", ", ".join(texts)


# ---- the table ---------------------------------------------------------------------------------------------------

def quantity(row, value):
    if row == "idle":
        return f"{value:.2f} %"
    if row == "rss":
        return f"{value:.1f} MiB"
    if row == "scale":
        return f"{value / 1000:.3f}"
    if row == "timer":
        return f"{1e9 / value:.0f}/s"
    for unit, ns in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value >= ns:
            return f"{value / ns:.3g} {unit}" if value < 999.5 * ns else f"{value / ns:.0f} {unit}"
    return f"{value:.3g} ns"


def ratio_text(entry, ratio, width):
    return f"{entry[ratio]['median']:{width - 1}.2f}x" if ratio in entry else f"{'-':>{width}}"


def table_line(row, entry, engines, bar):
    line = f"{row:13}"
    for engine in engines:
        line += f"{quantity(row, entry[engine]['median']) if engine in entry else '-':>11}"
    line += ratio_text(entry, "soft/native", 13)
    native = entry.get("soft/native", {})
    line += f"{native['min']:8.2f}-{native['max']:<5.2f}" if "min" in native else " " * 14
    line += ratio_text(entry, "soft/qemu", 11) + ratio_text(entry, "qemu/native", 13)
    return (line + ("  {0:12} {1}".format(*bar) if bar else "")).rstrip()


def table(rows, engines):
    """The rows with a bar first, in the bars' order."""
    bars = {b[0]: b for b in BARS}
    lines = [f"{'row':13}" + "".join(f"{e:>11}" for e in engines) +
             f"{'soft:native':>13}{'(spread)':>14}{'soft:qemu':>11}{'qemu:native':>13}  bar"]
    for row in list(bars) + [r for r in ROWS if r not in bars]:
        if row in rows:
            lines.append(table_line(row, rows[row], engines, verdict(rows, bars[row]) if row in bars else None))
    return "\n".join(lines)


# ---- the chart ---------------------------------------------------------------------------------------------------

LEFT, UNIT, STEP, TOP = 100, 150, 26, 76  # UNIT: pixels of a factor of ten
SOFT, QEMU = "#2a9d70", "#cc6633"


def x_of(ratio):
    """0.3x native is the left edge."""
    return LEFT + max(UNIT * (math.log10(ratio) + 0.5), 2)


def chart_row(row, entry, y, limit):
    out = [f'<text x="{LEFT - 6}" y="{y + 13}" text-anchor="end">{escape(row)}</text>']
    for k, (ratio, colour) in enumerate((("soft/native", SOFT), ("qemu/native", QEMU))):
        if ratio in entry:
            value = entry[ratio]["median"]
            x = x_of(value)
            out.append(f'<rect x="{LEFT}" y="{y + k * 10}" width="{x - LEFT:.0f}" height="9" fill="{colour}"/>'
                       f'<text x="{x + 3:.0f}" y="{y + k * 10 + 9}" font-size="9">{value:.2f}</text>')
    if limit:
        out.append(f'<line x1="{x_of(limit):.0f}" x2="{x_of(limit):.0f}" y1="{y - 2}" y2="{y + 12}" stroke="black" '
                   'stroke-width="2"/>')
    return "\n".join(out)


def chart_limit(row, entry):
    """The row's bar as a multiple of native: one against QEMU's time moves with that."""
    for name, native, tcg, _ in BARS:
        if name == row:
            limits = [native] if native else []
            if tcg and "qemu/native" in entry:
                limits.append(tcg * entry["qemu/native"]["median"])
            return min(limits, default=None)
    return None


def chart(rows, caption):
    """Bars of soft and of QEMU against native, on a logarithmic scale; a mark where a bar (of the table) is."""
    shown = [r for r in ["integer"] + GUEST_ROWS if "soft/native" in rows.get(r, {}) and r != "scale"]
    height = TOP + STEP * len(shown) + 30
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="760" height="{height}" font-family="sans-serif" '
           'font-size="12">', '<rect width="100%" height="100%" fill="white"/>',
           '<text x="10" y="18" font-size="14">Time, as a multiple of the host itself (logarithmic; less is better): '
           f'<tspan fill="{SOFT}">skep, soft engine</tspan>, <tspan fill="{QEMU}">QEMU TCG</tspan></text>',
           f'<text x="10" y="36" fill="#666">{escape(caption)}</text>']
    for ratio in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        x = x_of(ratio)
        colour = "#999" if math.log10(ratio).is_integer() else "#ddd"
        out.append(f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{TOP - 8}" y2="{height - 30}" stroke="{colour}"/>'
                   f'<text x="{x:.0f}" y="{TOP - 12}" text-anchor="middle" fill="#666" font-size="10">{ratio}x</text>')
    out += [chart_row(row, rows[row], TOP + i * STEP, chart_limit(row, rows[row])) for i, row in enumerate(shown)]
    boot = rows.get("boot", {})
    text = [f"{name} {quantity('boot', boot[e]['median'])}" for e, name in (("soft", "skep"), ("qemu", "QEMU microvm"))
            if e in boot]
    if text:
        out.append(f'<text x="10" y="{height - 10}">Debian\'s cloud kernel from process start to /init: '
                   f'{", ".join(text)}</text>')
    return "\n".join(out + ["</svg>"]) + "\n"
