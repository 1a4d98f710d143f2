"""Operations of a compiled program are sorted by what they do."""

import pytest

from benchmarks.where import describe

PROGRAM = """
%fused (p: f32[8]) -> f32[8] {
  ROOT %add.1 = f32[8]{0} add(%p, %p)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %arithmetic = f32[8]{0} fusion(%a), calls=%fused
  %moving = f32[8]{0} copy(%a)
  %product = f32[8,8]{1,0} dot(%a, %a)
  %cublas = (f32[8,8], s8[4]) custom-call(%a), custom_call_target="__cublas$gemm"
  %cudnn = (f32[8,8], u8[0]) custom-call(%a), custom_call_target="__cudnn$fmhaScaleBias"
}
"""


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("arithmetic", "arithmetic"),
        ("moving", "moving"),
        ("product", "product"),
        ("cublas", "product"),
        ("cudnn", "product"),
    ],
)
def test_libraries_products_are_products(operation, kind):
    assert describe(PROGRAM)[operation][0] == kind
