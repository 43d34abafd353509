"""What the compiler made of the kernels: no symbol that the linker could share between instruction sets, no register
spilled in the loop of a product.

The installed module has no symbols left, so the kernels are compiled once more here, by the flags of CMakeLists.txt.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import fastlstm
from fastlstm import _core

ROOT = Path(__file__).resolve().parents[1]

pytestmark = [
    pytest.mark.skipif(platform.machine() != "x86_64", reason="reads x86-64 machine code"),
    pytest.mark.skipif(not (ROOT / "csrc").exists(), reason="needs the sources"),
    *(
        pytest.mark.skipif(shutil.which(tool) is None, reason=f"{tool} is not installed")
        for tool in ("g++", "nm", "objdump")
    ),
]

# x86_v3_wide is exempt: 64-byte vectors on registers of 32 bytes spill by design, for the sake of their logic.
CHECKED = ["x86_v4", "x86_v3"]

# The loops of the products are nothing but multiply-adds: one spilled sum halved their speed. The cell's loop runs once
# a row, divides three times or more, and goes through the stack for the lanes of a last block that is not full.
PRODUCTS = r"\b(product_tile|outer_tile)<"
MOST_IN_A_CELL = 12
# A cell with options has more numbers than there are registers. They live in memory; the bench says what that costs.
# Layer normalisation adds up the lanes of a vector there, once a row.
VARIANTS = (
    r"cell_rows_(forward|backward)<.*(Activations|CellKind\)[12])>|"
    r"\b(cell_of|step_forward_normalised|recover_c|add_moments|row_moments|normalise_backward)<"
)


def output_of(*command: str | Path) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600)
    assert done.returncode == 0, done.stdout
    return done.stdout


def rows() -> dict[str, list[str]]:
    """The compiler's options by instruction set, read from the table in CMakeLists.txt."""
    text = (ROOT / "CMakeLists.txt").read_text()
    shared = re.search(r"target_compile_options\(kernels_\$\{name\} PRIVATE (.*?) \$\{ARGN\}\)", text)
    assert shared, "CMakeLists.txt has another form now"
    release = ["-std=gnu++17", "-O3", "-DNDEBUG", "-fPIC", "-fvisibility=hidden"]
    table = re.findall(r"^ +isa_row\((x86\w+) (\d+) (\d+) (\d+) ([^)]+)\)", text, re.MULTILINE)
    names = ("FASTLSTM_ISA", "FASTLSTM_VECTOR_BYTES", "FASTLSTM_TILE_VECTORS", "FASTLSTM_TILE_ASM")
    return {
        row[0]: [
            *release,
            *shared[1].split(),
            *row[4].split(),
            *(f"-D{n}={v}" for n, v in zip(names, row, strict=False)),
        ]
        for row in table
    }


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The kernels of every row as object files."""
    return compiled(tmp_path_factory, "kernels.cpp")


@pytest.fixture(scope="module")
def slstm_objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same of the sLSTM, whose steps call the LSTM's product."""
    return compiled(tmp_path_factory, "slstm_kernels.cpp")


def compiled(tmp_path_factory: pytest.TempPathFactory, name: str) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kernels")
    source = ROOT / "csrc" / "cpu" / name
    made = {isa: folder / f"{isa}.o" for isa in rows()}
    for isa, options in rows().items():
        if isa not in CHECKED:  # only their symbols count, and without optimisation there are more of them
            options = [*options, "-O0"]
        output_of("g++", *options, "-c", source, "-o", made[isa])
    return made


# Symbols


def test_table_was_read_in_full() -> None:
    compiled = fastlstm.build_config()["isa_compiled"]
    assert set(compiled) <= set(rows())
    assert set(CHECKED) <= set(rows())


@pytest.mark.parametrize("isa", rows() if (ROOT / "CMakeLists.txt").exists() else [])
def test_kernels_define_no_weak_symbol(isa: str, objects: dict[str, Path]) -> None:
    assert_only_tables_are_seen(isa, objects[isa], "kernels")


@pytest.mark.parametrize("isa", rows() if (ROOT / "CMakeLists.txt").exists() else [])
def test_kernels_of_the_slstm_define_no_weak_symbol(isa: str, slstm_objects: dict[str, Path]) -> None:
    assert_only_tables_are_seen(isa, slstm_objects[isa], "slstm_kernels")


def assert_only_tables_are_seen(isa: str, path: Path, table: str) -> None:
    symbols = [line.split() for line in output_of("nm", "--defined-only", path).splitlines()]
    weak = [name for *_, kind, name in symbols if kind in "wWvVuU"]
    assert not weak, f"the linker may keep another instruction set's {weak}"
    assert sorted(name for *_, kind, name in symbols if kind.isupper()) == [
        f"_ZN8fastlstm{len(isa)}{isa}{len(table) + 8}{table}_float{bits}E" for bits in (32, 64)
    ]


def test_installed_module_shares_no_kernel() -> None:
    symbols = [line.split() for line in output_of("nm", "-D", "--defined-only", _core.__file__).splitlines()]
    assert [name for *_, name in symbols if name.startswith("PyInit_")] == ["PyInit__core"]
    inner = "|".join(f"N8fastlstm{len(isa)}{isa}" for isa in rows())
    assert not [name for *_, name in symbols if re.search(inner, name)]


# Spills


@dataclass(frozen=True)
class Instruction:
    address: int
    name: str
    operands: str

    @property
    def target(self) -> int | None:
        """Where a jump goes."""
        found = re.match(r"([0-9a-f]+)\b", self.operands) if self.name.startswith("j") else None
        return int(found[1], 16) if found else None


@dataclass
class Function:
    name: str
    code: list[Instruction] = field(default_factory=list)

    @property
    def stack(self) -> str:
        """The registers that point into its frame, as a pattern; rbp is often an ordinary one."""
        frame = any(i.name == "mov" and i.operands == "%rsp,%rbp" for i in self.code)
        return r"\(%r[sb]p" if frame else r"\(%rsp"

    def loops(self) -> Iterator[list[Instruction]]:
        """What lies between a jump backwards and its target."""
        for jump in self.code:
            if jump.target is not None and self.code[0].address <= jump.target <= jump.address:
                yield [i for i in self.code if jump.target <= i.address <= jump.address]

    def multiplying_loops(self) -> list[list[Instruction]]:
        """The innermost ones that hold a fused multiply-add, or a product of whole numbers."""
        spans = [loop for loop in self.loops() if any(i.name.startswith(("vfmadd", "vpmaddwd")) for i in loop)]
        ends = [(loop[0].address, loop[-1].address) for loop in spans]

        def contains_another(i: int) -> bool:
            (first, last), others = ends[i], ends[:i] + ends[i + 1 :]
            return any(first <= a and b <= last and (a, b) != (first, last) for a, b in others)

        return [loop for i, loop in enumerate(spans) if not contains_another(i)]

    def spills(self) -> list[str]:
        """Vectors that such a loop loads from the stack or stores there."""
        inside = {i.address: i for loop in self.multiplying_loops() for i in loop}
        return [
            f"{i.name} {i.operands}"
            for i in inside.values()
            if re.search(r"%[xyz]mm", i.operands) and re.search(self.stack, i.operands)
        ]


def disassembled(text: str) -> list[Function]:
    """The functions in what `objdump -d --no-show-raw-insn -C` prints."""
    functions: list[Function] = []
    for line in text.splitlines():
        if header := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            functions.append(Function(header[1]))
        elif code := re.match(r" +([0-9a-f]+):\s+(?:\{\w+\} )?(?:(?:notrack|bnd|rep|lock) )?(\S+) *(.*)$", line):
            functions[-1].code.append(Instruction(int(code[1], 16), code[2], code[3].partition("#")[0].strip()))
    return [function for function in functions if function.code]


def functions_of(path: Path) -> list[Function]:
    return disassembled(output_of("objdump", "-d", "--no-show-raw-insn", "-C", path))


@pytest.mark.parametrize("isa", CHECKED)
def test_no_product_spills(isa: str, objects: dict[str, Path]) -> None:
    products = [function for function in functions_of(objects[isa]) if re.search(PRODUCTS, function.name)]
    found = [f"{function.name}: {spill}" for function in products for spill in function.spills()]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("isa", CHECKED)
def test_other_kernels_hardly_spill(isa: str, objects: dict[str, Path]) -> None:
    found = {
        function.name: function.spills()
        for function in functions_of(objects[isa])
        if not re.search(VARIANTS, function.name)
    }
    assert not {name: spills for name, spills in found.items() if len(spills) > MOST_IN_A_CELL}


@pytest.mark.parametrize("isa", CHECKED)
def test_kernels_of_the_slstm_hardly_spill(isa: str, slstm_objects: dict[str, Path]) -> None:
    found = {function.name: function.spills() for function in functions_of(slstm_objects[isa])}
    for kernel in ("slstm_rows_forward", "slstm_rows_backward"):
        for element in ("float", "double"):
            assert any(f"{kernel}<{element}" in name for name in found)
    assert not {name: spills for name, spills in found.items() if len(spills) > MOST_IN_A_CELL}


@pytest.mark.parametrize("isa", CHECKED)
def test_every_clone_is_looked_at(isa: str, objects: dict[str, Path]) -> None:
    register = {"x86_v4": "%zmm", "x86_v3": "%ymm"}[isa]
    functions = functions_of(objects[isa])

    def with_loops_of(instruction: str) -> set[str]:
        return {
            function.name
            for function in functions
            for loop in function.multiplying_loops()
            if any(i.name.startswith(instruction) and register in i.operands for i in loop)
        }

    multiplying, whole = with_loops_of("vfmadd"), with_loops_of("vpmaddwd")
    widths = range(1, 1 + {"x86_v4": 4, "x86_v3": 2}[isa])  # vectors of a tile; only whole weights have tails
    tiles = {
        "product_tile<float, float": (multiplying, widths),
        "product_tile<float, fastlstm::.*Bfloat16": (multiplying, widths[-1:]),
        "product_tile_int8<": (whole, widths[-1:]),
        "product_tile<double, double": (multiplying, widths),
    }
    for tile, (names, expected) in tiles.items():
        sizes = {found.groups() for name in names if (found := re.search(rf"{tile}(?:, )?(\d), (\d)>", name))}
        missing = {(str(rows), str(width)) for rows in range(1, 7) for width in expected} - sizes
        assert not missing, tile
    for element in ("float", "double"):
        for kernel in ("outer_tile", "cell_rows_forward", "cell_rows_backward"):
            assert any(f"{kernel}<{element}" in name for name in multiplying), f"{kernel} of {element}"


@pytest.mark.parametrize("isa", CHECKED)
@pytest.mark.parametrize("name", ["activate", "activation_slope"])
def test_activations_stay_in_registers(isa: str, name: str, objects: dict[str, Path]) -> None:
    register = {"x86_v4": "%zmm", "x86_v3": "%ymm"}[isa]
    for element in ("float", "double"):
        (code,) = (f.code for f in functions_of(objects[isa]) if f"::{name}<{element}" in f.name)
        assert any(i.name.startswith("vfmadd") and register in i.operands for i in code)
        assert not [i for i in code if register in i.operands and re.search(r"\(%r[sb]p", i.operands)]


# The equations as a textbook has them, for the plain cell to be held against: its hooks must leave nothing behind.
TEXTBOOK = """
#include "kernels.cpp"
namespace fastlstm::FASTLSTM_ISA {
namespace {
using V = Vec<float>;
}
#define FUNCTION extern "C" __attribute__((noinline, visibility("default"))) void
FUNCTION forward_plain(const Gates<V>& pre, V& c, V& h, Gates<V>& saved) {
  const CellState<V> now = cell_forward<V>(PlainCell<V>{}, pre, c, saved);
  c = now.c, h = now.h;
}
FUNCTION forward_textbook(const Gates<V>& pre, V& c_state, V& h, Gates<V>& saved) {
  const auto i = sigmoid(pre.i);
  const auto g = tanh(pre.g);
  const auto f = sigmoid(pre.f);
  const V c = f * c_state + i * g;
  const auto o = sigmoid(pre.o);
  const V y = value(o * tanh(c));
  saved = {value(i), value(f), value(g), value(o)};
  c_state = c, h = y;
}
FUNCTION backward_plain(const Gates<V>& gates, V c_prev, V c, V dh, V dc, CellGradient<V>& d) {
  d = cell_backward<V>(PlainCell<V>{}, gates, c_prev, c, dh, dc);
}
FUNCTION backward_textbook(const Gates<V>& gates, V c_prev, V c, V dh, V dc, CellGradient<V>& d) {
  const V i = gates.i, f = gates.f, g = gates.g, o = gates.o, y = value(tanh(c));
  const V d_o = dh * y;
  dc = fma(dh * o, 1 - y * y, dc);
  const V di = dc * g, df = dc * c_prev, dg = dc * i;
  d = {{di * i * (1 - i), df * f * (1 - f), dg * (1 - g * g), d_o * o * (1 - o)}, dc * f, o * y};
}
}
"""


@pytest.mark.parametrize("isa", CHECKED)
def test_the_plain_cell_is_the_textbook_to_the_instruction(isa: str, tmp_path: Path) -> None:
    (tmp_path / "textbook.cpp").write_text(TEXTBOOK)
    made = tmp_path / "textbook.o"
    include = f"-I{ROOT / 'csrc' / 'cpu'}"
    output_of("g++", *rows()[isa], include, "-c", tmp_path / "textbook.cpp", "-o", made)
    codes = {function.name: function.code for function in functions_of(made)}

    def arithmetic(name: str) -> Counter[str]:
        """Without what the choice of registers decides: moves, and which operand of a multiply-add is overwritten."""
        names = (re.sub(r"132|213|231", "", i.name) for i in codes[name])
        return Counter(name for name in names if name.startswith("v") and not name.startswith("vmov"))

    for way in ("forward", "backward"):
        assert arithmetic(f"{way}_plain") == arithmetic(f"{way}_textbook"), way
        assert arithmetic(f"{way}_plain").total() > 20


# That the detector detects

SPILLING = """
typedef float V __attribute__((vector_size(32)));
void multiply(V* c, const V* b, const float* a, long n) {
  V sum[SUMS];
#pragma GCC unroll 64
  for (int j = 0; j < SUMS; ++j) sum[j] = c[j];
#pragma GCC unroll 1
  for (long k = 0; k < n; ++k)
#pragma GCC unroll 64
    for (int j = 0; j < SUMS; ++j) sum[j] += b[SUMS * k + j] * (V{} + a[k]);
#pragma GCC unroll 64
  for (int j = 0; j < SUMS; ++j) c[j] = sum[j];
}
"""


@pytest.mark.parametrize(("sums", "spills"), [(6, False), (24, True)], ids=["fits", "too_many_sums"])
def test_detector_on_compiled_code(sums: int, spills: bool, tmp_path: Path) -> None:
    (tmp_path / "loop.cpp").write_text(SPILLING)
    options = [f"-DSUMS={sums}", "-O3", "-mavx2", "-mfma", "-ffp-contract=fast"]
    output_of("g++", *options, "-c", tmp_path / "loop.cpp", "-o", tmp_path / "loop.o")
    (function,) = functions_of(tmp_path / "loop.o")
    assert function.multiplying_loops()
    assert bool(function.spills()) == spills


LISTING = """
0000000000000000 <kernel>:
   0:\tpush   %rbp
   1:\tmov    %rsp,%rbp
   4:\tvmovaps %ymm1,-0x40(%rbp)
   8:\tvfmadd231ps (%rax),%ymm2,%ymm3
   c:\t{store}
  10:\tcmp    %rdx,%rcx
  14:\tjne    8 <kernel+0x8>
  18:\tvmovaps -0x40(%rbp),%ymm1
  1c:\tjb     0 <kernel>
"""


@pytest.mark.parametrize(
    ("store", "spills"),
    [
        ("vmovaps %ymm1,0x20(%rsp)", 1),
        ("vmovups -0x40(%rbp,%rax,8),%zmm31", 1),
        ("vaddps -0x40(%rbp),%ymm1,%ymm1", 1),
        ("mov    %rax,0x20(%rsp)", 0),  # an address costs nothing beside a product
        ("vmovaps %ymm1,0x20(%rdi)", 0),
        ("vmovaps 0x20(%rip),%ymm1        # 60 <constant>", 0),
    ],
    ids=["store", "load", "operand", "scalar", "not_the_stack", "constant"],
)
def test_detector_on_a_listing(store: str, spills: int) -> None:
    (function,) = disassembled(LISTING.format(store=store))
    assert len(function.multiplying_loops()) == 1  # the outer loop may load and store what the inner one does not
    assert len(function.spills()) == spills


def test_detector_takes_rbp_for_an_ordinary_register_where_it_is_one() -> None:
    listing = LISTING.format(store="vmovaps %ymm1,0x20(%rbp)").replace("mov    %rsp,%rbp", "mov    %rdi,%rbp")
    (function,) = disassembled(listing)
    assert function.spills() == []
