"""The account of a compiled program, on texts small enough to count by hand."""

import pytest

from stability.devices import hlo

TEXT = """HloModule jit_step, entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%fused_rows (p0: f32[1000,8], p1: s32[4]) -> f32[4,8] {
  %p0 = f32[1000,8]{1,0} parameter(0)
  %p1 = s32[4]{0} parameter(1)
  ROOT %rows = f32[4,8]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,8}
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%state), index=1
  %copied = f32[4,8]{1,0} copy(%x)
  ROOT %next = (s32[], f32[4,8]{1,0}) tuple(%i, %copied)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%state.1), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%j, %three), direction=LT
}

ENTRY %main (table: f32[1000,8], ids: s32[4], flag: bf16[2,4]) -> f32[4,8] {
  %table = f32[1000,8]{1,0} parameter(0), metadata={op_name="table (all) of it"}
  %ids = s32[4]{0} parameter(1)
  %flag = bf16[2,4]{1,0} parameter(2)
  %taken = f32[4,8]{1,0} fusion(%table, %ids), kind=kLoop, calls=%fused_rows
  %zero = s32[] constant(0)
  %pair = (s32[], f32[4,8]{1,0}) tuple(%zero, %taken)
  %loop = (s32[], f32[4,8]{1,0}) while(%pair), condition=%condition, body=%body, TRIPS
  %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  %begun = f32[4,8]{1,0} all-reduce-start(%out), channel_id=1, to_apply=%add
  %summed = f32[4,8]{1,0} all-reduce-done(%begun)
  %whole = bf16[8,4]{1,0} all-gather(%flag), channel_id=2, dimensions={0}
  %near = f32[4,8]{1,0:T(8,128)S(1)} copy(%summed)
  ROOT %bits = f32[4,8]{1,0} bitcast(%near)
}
"""
ROWS = 4 * 8 * 4  # bytes of f32[4,8]
KNOWN = 'backend_config={"known_trip_count":{"n":"3"}}'


def test_kernels():
  """A fusion, three copies of the loop, two collectives and a copy."""
  assert hlo.profile(TEXT.replace('TRIPS', KNOWN)).kernels == 1 + 3 + 2 + 1


def test_loop_of_unknown_length_counts_once():
  assert hlo.profile(TEXT).kernels == 1 + 1 + 2 + 1


def test_bytes():
  """Of the table only the rows taken count, and of the last copy what is not on the chip."""
  fusion = ROWS + 4 * 4 + ROWS  # rows, ids, output
  reduced, gathered, copied = 2 * ROWS, 2 * 4 * 2 + 8 * 4 * 2, ROWS
  expected = fusion + 3 * 2 * ROWS + reduced + gathered + copied
  assert hlo.profile(TEXT.replace('TRIPS', KNOWN)).bytes == expected


def test_collectives():
  assert hlo.profile(TEXT).collectives == {
      'all-gather': hlo.Collective(1, 8 * 4 * 2),
      'all-reduce': hlo.Collective(1, ROWS),
  }


def test_largest_array():
  """The table is an input: no kernel writes it."""
  assert hlo.profile(TEXT).largest == 'f32[4,8]'


def test_starts_of_asynchronous_operations():
  """Their shapes name operands, too; of each, the kernel writes the result alone."""
  text = '''HloModule m

ENTRY %main (a: f32[2], b: f32[3]) -> f32[8] {
  %a = f32[2]{0} parameter(0)
  %b = f32[3]{0} parameter(1)
  %g = ((f32[2]{0}, f32[3]{0}), (f32[8]{0}, f32[12]{0})) all-gather-start(%a, %b), channel_id=1
  %r = (f32[8]{0}, f32[12]{0}) all-gather-done(%g)
  %c = (f32[3]{0:S(1)}, f32[3]{0}, u32[]{:S(2)}) copy-start(%b)
  %d = f32[3]{0:S(1)} copy-done(%c)
  %p = (f32[2]{0}, f32[2]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%a), channel_id=2
  ROOT %q = f32[2]{0} collective-permute-done(%p)
}
'''
  found = hlo.profile(text)
  assert found.collectives == {
      'all-gather': hlo.Collective(1, 4 * (8 + 12)),
      'collective-permute': hlo.Collective(1, 4 * 2),
  }
  assert found.kernels == 3
  assert found.bytes == 4 * (2 + 3 + 8 + 12) + 4 * 3 + 4 * (2 + 2)
  assert found.largest == 'f32[12]'


def test_scatters_of_no_fixed_order():
  scatter = '  %s = f32[4,8]{1,0} scatter(%taken, %ids, %taken), unique_indices=true, to_apply=%add'
  at = '  %zero = s32[] constant(0)'
  assert hlo.profile(TEXT.replace(at, f'{scatter}\n{at}')).unordered_scatters == 0
  unordered = scatter.replace('unique_indices=true, ', '')
  assert hlo.profile(TEXT.replace(at, f'{unordered}\n{at}')).unordered_scatters == 1


@pytest.mark.parametrize(
    'shape, expected',
    [
        ('f32[]', 4),
        ('pred[7]{0}', 7),
        ('bf16[2,3]{1,0}', 12),
        ('(u8[5]{0}, /*index=1*/s64[2]{0}, ())', 21),
        ('f8e4m3fn[16]{0}', 16),
        ('s4[16]{0}', 16),  # stored a byte each
        ('token[]', 0),
    ],
)
def test_size_of_a_shape(shape, expected):
  assert hlo.nbytes(shape) == expected


BRANCHES = """HloModule jit_step

%yes (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  ROOT %c = f32[4,8]{1,0} copy(%x)
}

%no (y: f32[4,8]) -> f32[4,8] {
  %y = f32[4,8]{1,0} parameter(0)
  ROOT %n = f32[4,8]{1,0} negate(%y)
}

%together (z: f32[4,8]) -> f32[4,8] {
  %z = f32[4,8]{1,0} parameter(0)
  %d = f32[4,8]{1,0} copy(%z)
  ROOT %e = f32[4,8]{1,0} negate(%d)
}

ENTRY %main (p: s32[], q: f32[4,8]) -> f32[4,8] {
  %p = s32[] parameter(0)
  %q = f32[4,8]{1,0} parameter(1)
  %r = f32[4,8]{1,0} conditional(%p, %q, %q), branch_computations={%yes, %no}
  ROOT %s = f32[4,8]{1,0} call(%r), to_apply=%together
}
"""


def test_branches_and_calls():
  """Both branches count, since the one taken is not known, and so does what a call contains."""
  assert hlo.profile(BRANCHES).kernels == 2 + 2
