import jax
import jax.numpy as jnp
import pytest

from experiments.host.program_cost import DATA_DEPENDENT_TRIPS, ProgramCost, count_kernels, nbytes, program_cost

SIZE = 32
SQUARE = jax.ShapeDtypeStruct((SIZE, SIZE), jnp.float32)
PRODUCT = 2 * SIZE**3


def products(x, y, num):
    return jax.lax.scan(lambda x, _: (x @ y, None), x, length=num)[0]


@pytest.mark.parametrize("num", [1, 7])
def test_a_loop_counts_as_often_as_it_runs(num):
    cost = program_cost(lambda x, y: products(x, y, num), SQUARE, SQUARE)
    assert cost.flops == pytest.approx(num * PRODUCT, rel=0.05)
    assert cost.bytes >= num * 3 * SQUARE.size * 4


def test_loops_within_loops_and_seeds():
    def nested(x, y):
        return jax.lax.scan(lambda x, _: (products(x, y, 5), None), x, length=3)[0]

    assert program_cost(nested, SQUARE, SQUARE).flops == pytest.approx(15 * PRODUCT, rel=0.05)
    seeds = jax.ShapeDtypeStruct((2, SIZE, SIZE), jnp.float32)
    assert program_cost(jax.vmap(nested), seeds, seeds).flops == pytest.approx(30 * PRODUCT, rel=0.05)


def test_a_loop_until_a_condition_has_the_assumed_trips():
    def until(x, y):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1.0, lambda x: x @ y, x)

    assert program_cost(until, SQUARE, SQUARE).flops == pytest.approx(DATA_DEPENDENT_TRIPS * PRODUCT, rel=0.05)


def test_memory_holds_at_least_arguments_and_results():
    assert program_cost(jnp.matmul, SQUARE, SQUARE).memory >= 3 * SQUARE.size * 4
    assert nbytes({"a": SQUARE, "b": jax.ShapeDtypeStruct((), jnp.int32)}) == SQUARE.size * 4 + 4


PROGRAM = """HloModule jit_f

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %s = f32[4]{0} sine(%p)
}

%body (arg: (s32[], f32[4])) -> (s32[], f32[4]) {
  %arg = (s32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%arg), index=1
  %i = s32[] get-tuple-element(%arg), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %y = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused
  ROOT %t = (s32[], f32[4]{0}) tuple(%next, %y)
}

%until (arg.1: (s32[], f32[4])) -> pred[] {
  %arg.1 = (s32[], f32[4]{0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%arg.1), index=0
  %ten = s32[] constant(10)
  ROOT %lt = pred[] compare(%i.1, %ten), direction=LT
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %zero = s32[] constant(0)
  %copy = f32[4]{0} copy(%a)
  %start = (s32[], f32[4]{0}) tuple(%zero, %copy)
  %while.1 = (s32[], f32[4]{0}) while(%start), condition=%until, body=%body, backend_config={TRIPS}
  ROOT %out = f32[4]{0} get-tuple-element(%while.1), index=1
}
"""


def test_kernels_are_instructions_outside_of_fusions_as_often_as_they_run():
    known = PROGRAM.replace("{TRIPS}", '{"known_trip_count":{"n":"10"}}')
    assert count_kernels(known) == 1 + 10 * (2 + 1)
    assert count_kernels(PROGRAM.replace("{TRIPS}", "{}")) == 1 + DATA_DEPENDENT_TRIPS * (2 + 1)


def test_costs_add_up_but_their_memory_does_not():
    first, second = ProgramCost(1.0, 2.0, 3.0, 40.0), ProgramCost(10.0, 20.0, 30.0, 4.0)
    assert first.then(second) == ProgramCost(11.0, 22.0, 33.0, 40.0)
    assert first.times(3) == ProgramCost(3.0, 6.0, 9.0, 40.0)
    assert second.holding(5.0).memory == 9.0
