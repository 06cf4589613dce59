"""The CDF transform against explicitly counted ranks, and packing against its inverse."""

import math

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings

from coda_jax import transforms
from coda_jax.types import TaskSpec, Trajectory

N = 20_000
K = 1024
SPEC = TaskSpec(name="toy", num_agents=2, state_dim=5, obs_dim=3, action_dim=2, episode_length=10)

forward = jax.jit(transforms.forward)
inverse = jax.jit(transforms.inverse)
slope_of_inverse = jax.jit(jax.grad(lambda z, transform: transforms.inverse(transform, z).sum()))

CONTINUOUS = ("uniform", "heavy tailed", "bimodal", "two clusters", "lopsided", "far from zero")
ATOMIC = ("clipped", "mostly saturated", "rare ceiling", "inner atom", "few values", "rounded", "binary", "rare event")
NAMES = (*CONTINUOUS, *ATOMIC, "constant")


def _draw(seed: int) -> np.ndarray:
    """`[N, C]` samples of all kinds of features, in the order of NAMES."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=N)
    sign = rng.choice([-1.0, 1.0], N)
    features = {
        "uniform": rng.uniform(-2, 3, N),
        "heavy tailed": rng.standard_cauchy(N),
        "bimodal": sign * 3 + 0.3 * normal,
        "two clusters": sign * 100 + 0.01 * rng.uniform(size=N),
        "lopsided": np.exp(1.5 * normal),
        "far from zero": 1000 + normal,
        "clipped": np.clip(normal, -1, 1),
        "mostly saturated": np.clip(normal + 2, -1, 1),
        "rare ceiling": np.minimum(rng.uniform(size=N), 0.9995),
        "inner atom": np.where(rng.uniform(size=N) < 0.3, 0.0, normal),
        "few values": rng.choice([-1.0, 0.1, 0.2, 7.0], N, p=[0.5, 0.01, 0.29, 0.2]),
        "rounded": normal.round(2),
        "binary": (normal > 0.5).astype(float),
        "rare event": (np.arange(N) % 2000 == seed).astype(float),
        "constant": np.full(N, 0.7),
    }
    return np.stack([features[name] for name in NAMES], -1).astype(np.float32)


@pytest.fixture(scope="module")
def data() -> np.ndarray:
    return _draw(0)


@pytest.fixture(scope="module")
def transform(data: np.ndarray) -> transforms.CdfTransform:
    return transforms.fit(data, K)


@pytest.fixture(scope="module")
def image(transform: transforms.CdfTransform, data: np.ndarray) -> np.ndarray:
    return np.asarray(forward(transform, jnp.asarray(data), jax.random.key(0)))


def _u(z: np.ndarray) -> np.ndarray:
    """The uniform variable of z, in double precision."""
    return 1 / (1 + np.exp(-np.asarray(z, np.float64) * math.pi / math.sqrt(3)))


def _z(u: np.ndarray) -> jax.Array:
    """The z of a uniform variable."""
    return jnp.asarray(np.log(u / (1 - u)) * math.sqrt(3) / math.pi, jnp.float32)


def _is_atom(values: np.ndarray, num_knots: int) -> np.ndarray:
    """The values of one channel with exact round trips."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    extreme = (values == values.min()) | (values == values.max())
    return (counts[which] > 1) & ((counts[which] * num_knots >= values.size) | extreme)


def test_round_trip_is_within_a_thousandth_of_the_range(transform, data, image):
    error = np.abs(inverse(transform, jnp.asarray(image)) - data).max(0)
    assert (error <= 1e-3 * np.ptp(data, axis=0)).all(), dict(zip(NAMES, error, strict=True))


def test_atoms_return_bit_for_bit(transform, data, image):
    returned = np.asarray(inverse(transform, jnp.asarray(image)))
    for c, name in enumerate(NAMES):
        atom = _is_atom(data[:, c], K)
        np.testing.assert_array_equal(returned[atom, c], data[atom, c], err_msg=name)


def test_atoms_cover_exactly_the_ranks_of_their_samples(transform, data):
    u = (np.arange(N) + 0.5) / N
    x = np.asarray(inverse(transform, jnp.repeat(_z(u)[:, None], len(NAMES), 1)))
    for c, name in enumerate(NAMES):
        for value in np.unique(data[_is_atom(data[:, c], K), c]):
            assert np.sum(x[:, c] == value) == np.sum(data[:, c] == value), (name, value)


def test_image_of_continuous_features_is_uniform_to_one_cell(image):
    for c, name in enumerate(CONTINUOUS):
        assert scipy.stats.kstest(_u(image[:, c]), "uniform").statistic < 1 / K + 1 / N, name


def test_image_of_atoms_is_uniform(image):
    for c, name in enumerate(ATOMIC, start=len(CONTINUOUS)):
        assert scipy.stats.kstest(_u(image[:, c]), "uniform").pvalue > 0.01, name


def test_image_of_held_out_data_is_uniform(transform):
    held_out = forward(transform, jnp.asarray(_draw(1)), jax.random.key(1))
    critical = 1.95 * math.sqrt(2 / N)  # two samples of N, at 0.1 %
    for c, name in enumerate(NAMES[:-1]):
        assert scipy.stats.kstest(_u(held_out[:, c]), "uniform").statistic < critical, name


def test_image_has_unit_variance_and_zero_mean(image):
    # The standard error of a logistic sample's deviation is sqrt(3.2 / 4 N) = 0.0063.
    np.testing.assert_allclose(image[:, :-1].std(0), 1.0, atol=0.02)
    np.testing.assert_allclose(image[:, :-1].mean(0), 0.0, atol=0.02)


def test_constant_features_emit_zero_and_are_restored(transform, data, image):
    assert (image[:, -1] == 0.0).all()
    anywhere = jnp.repeat(jnp.linspace(-9, 9, 101)[:, None], len(NAMES), 1)
    assert (inverse(transform, anywhere)[:, -1] == data[0, -1]).all()


def test_both_directions_are_monotone(transform, data, image):
    for c, name in enumerate(NAMES):
        ordered = image[np.lexsort((image[:, c], data[:, c])), c]
        assert (np.diff(ordered) >= -1e-6).all(), name
    x = np.asarray(inverse(transform, jnp.repeat(jnp.linspace(-8, 8, 40_001)[:, None], len(NAMES), 1)))
    # The sigmoid itself is monotone only to its rounding, 1e-7 of u.
    assert (np.diff(x, axis=0) >= -1e-7 * K * np.ptp(data, axis=0)).all()


def test_ranks_of_a_tiny_sample_are_midpoints():
    data = np.array([[9.0], [2.0], [5.0], [-1.0], [5.5]], np.float32)
    z = forward(transforms.fit(data), jnp.asarray(data), jax.random.key(0))
    np.testing.assert_allclose(_u(z)[:, 0], [0.9, 0.3, 0.5, 0.1, 0.7], atol=3e-7)


def test_jitter_spans_the_ranks_of_an_atoms_samples():
    data = np.array([2.0, 2.0, 2.0, 5.0, 9.0], np.float32)[:, None]
    twos = jnp.full((10_000, 1), 2.0)
    u = _u(forward(transforms.fit(data), twos, jax.random.key(0)))
    assert u.min() == pytest.approx(0.1, abs=1e-3)
    assert u.max() == pytest.approx(0.5, abs=1e-3)
    assert scipy.stats.kstest(u[:, 0], scipy.stats.uniform(0.1, 0.4).cdf).pvalue > 0.01


def test_derivatives_are_those_of_the_formula_and_of_finite_differences():
    samples = np.array([0.0, 1.0, 3.0, 4.0, 9.0, 9.0, 9.0, 11.0], np.float32)
    transform = transforms.fit(samples[:, None])
    n = samples.size

    def x_of(z):
        return inverse(transform, z[None])[0]

    def z_of(x):
        return forward(transform, x[None], jax.random.key(0))[0]

    # Between the midpoint ranks of 0 and 1, 1 and 3, 3 and 4; inside the atom at 9; beyond the last rank.
    for u, gap in ((1.0 / n, 1.0), (2.1 / n, 2.0), (3.2 / n, 1.0), (5.5 / n, 0.0), (7.7 / n, 0.0)):
        z = _z(np.array(u))
        slope = gap * n * u * (1 - u) * math.pi / math.sqrt(3)  # dQ/du times the sigmoid's derivative
        assert jax.grad(x_of)(z) == pytest.approx(slope, rel=1e-4, abs=1e-6)
        step = 0.02
        assert (x_of(z + step) - x_of(z - step)) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=1e-6)
        if gap:
            x = x_of(z)
            assert jax.grad(z_of)(x) == pytest.approx(1 / slope, rel=1e-4)
            assert (z_of(x + step) - z_of(x - step)) / (2 * step) == pytest.approx(1 / slope, rel=5e-3)


@settings(max_examples=40)
@given(
    data=npst.arrays(  # XLA flushes subnormal numbers to zero
        np.float32,
        st.sampled_from([(1, 1), (2, 1), (32, 1)]),
        elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False),
    ),
    z=npst.arrays(np.float32, (50, 1), elements=st.floats(allow_nan=False, width=32)),
    num_knots=st.sampled_from([4, 1024]),
    unbounded=st.booleans(),
)
def test_inverse_maps_into_the_bounds(data, z, num_knots, unbounded):
    transform = transforms.fit(data, num_knots, np.array([unbounded]))
    x = np.asarray(inverse(transform, z))
    assert (data.min() <= x).all() and (x <= data.max()).all()
    assert np.isfinite(slope_of_inverse(z, transform)).all()


@settings(max_examples=50)
@given(
    data=npst.arrays(np.int32, (64, 1), elements=st.integers(-6, 6) | st.sampled_from([0, 0, 1, 6])),
    num_knots=st.sampled_from([1, 3, 8, 16, 100]),
)
def test_atoms_are_exact_wherever_their_edges_meet_the_cells(data, num_knots):
    data = data.astype(np.float32)
    transform = transforms.fit(data, num_knots)
    z = forward(transform, jnp.asarray(data), jax.random.key(0))
    returned = np.asarray(inverse(transform, z))
    atom = _is_atom(data[:, 0], num_knots)
    np.testing.assert_array_equal(returned[atom], data[atom])
    np.testing.assert_allclose(returned, data, rtol=0, atol=1e-3 * max(np.ptp(data), 1e-6))
    at_ranks = np.asarray(inverse(transform, _z((np.arange(64)[:, None] + 0.5) / 64)))
    assert (np.diff(at_ranks, axis=0) >= 0).all()
    for value in np.unique(data[atom]):
        assert np.sum(at_ranks == value) >= np.sum(data == value)  # a line may also pass through a value
    if num_knots >= 64:
        np.testing.assert_allclose(at_ranks, np.sort(data, axis=0), atol=1e-4)


def test_infinities_give_the_extremes_and_nan_stays_nan(transform, data):
    z = jnp.repeat(jnp.array([[-jnp.inf], [jnp.inf], [jnp.nan]]), len(NAMES), 1)
    x = np.asarray(inverse(transform, z))
    np.testing.assert_array_equal(x[0], data.min(0))
    np.testing.assert_array_equal(x[1], data.max(0))
    assert np.isnan(x[2]).all()
    lost = forward(transform, jnp.full((1, len(NAMES)), jnp.nan), jax.random.key(0))
    assert np.isnan(lost[0, :-1]).all()


def test_rounding_does_not_exceed_the_maximum():
    # One knot: the last cell rises from -1 to a small maximum x, and -1 + (x + 1) rounds above x for half of all x.
    maxima = np.linspace(1e-4, 1e-3, 50)
    data = np.stack([np.full(50, value) for value in (-2.0, -1.0, -1.0)] + [maxima]).astype(np.float32)
    beyond_last_rank = jnp.full((1, 50), 3.0)
    x = np.asarray(inverse(transforms.fit(data, num_knots=1), beyond_last_rank))
    assert (x <= data.max(0)).all()
    np.testing.assert_allclose(x[0], data.max(0), atol=1e-6)


def test_values_outside_the_range_are_clipped(transform, data):
    beyond = jnp.asarray(np.stack([data.min(0) - 5, data.max(0) + 5]))
    returned = inverse(transform, forward(transform, beyond, jax.random.key(0)))
    error = np.abs(returned - np.stack([data.min(0), data.max(0)])).max(0)
    assert (error <= 1e-3 * np.ptp(data, axis=0)).all()


def test_unbounded_features_stay_uniform(data):
    unbounded = np.arange(len(NAMES)) % 2 == 0
    transform = transforms.fit(data, K, unbounded)
    z = forward(transform, jnp.asarray(data), jax.random.key(0))
    np.testing.assert_allclose(z[:, :-1].std(0), 1.0, atol=0.02)
    for c in np.flatnonzero(unbounded[:-1]):
        assert jnp.abs(z[:, c]).max() <= math.sqrt(3)
        uniform = scipy.stats.uniform(-math.sqrt(3), 2 * math.sqrt(3))
        assert scipy.stats.kstest(np.asarray(z[:, c]), uniform.cdf).pvalue > 0.01, NAMES[c]
    error = np.abs(inverse(transform, z) - data).max(0)
    assert (error <= 1e-3 * np.ptp(data, axis=0)).all()


def test_selected_channels_equal_the_whole_transforms(transform, image):
    channels = slice(6, 10)
    part = transforms.select(transform, channels)
    np.testing.assert_array_equal(
        inverse(part, jnp.asarray(image[:100, channels])),
        inverse(transform, jnp.asarray(image[:100]))[:, channels],
    )


def test_jit_and_vmap_change_nothing(transform, data, image):
    z = jnp.asarray(image[:120]).reshape(2, 3, 20, len(NAMES))
    # Compiled arithmetic may round differently, by 1e-7 of u.
    close = {"rtol": 1e-5, "atol": 1e-6 * np.ptp(data, axis=0).max()}
    expected = transforms.inverse(transform, z)
    np.testing.assert_allclose(inverse(transform, z), expected, **close)
    np.testing.assert_allclose(jax.vmap(inverse, in_axes=(None, 0))(transform, z), expected, **close)
    x = jnp.asarray(data[:120]).reshape(2, 60, len(NAMES))
    keys = jax.random.split(jax.random.key(2), 2)
    same_keys = jax.random.clone(keys)
    alone = jnp.stack([forward(transform, x[i], same_keys[i]) for i in range(2)])
    per_seed = jax.vmap(forward, in_axes=(None, 0, 0))(transform, x, keys)
    np.testing.assert_allclose(per_seed, alone, rtol=1e-4, atol=1e-4)


def test_bad_data_are_refused_in_one_line():
    data = np.zeros((10, 3), np.float32)
    data[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"^data to fit: channel 1 is not finite in 1 of 10 samples$"):
        transforms.fit(data)
    with pytest.raises(ValueError, match=r"N > 0, not \[0, 3\]$"):
        transforms.fit(data[:0])
    with pytest.raises(ValueError, match="num_knots must be at least 1, not 0"):
        transforms.fit(data, 0)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_unpack_inverts_pack_over_any_batch_axes(batch):
    horizon = 4
    shapes = {
        "state": (SPEC.state_dim,),
        "obs": (SPEC.num_agents, SPEC.obs_dim),
        "action": (SPEC.num_agents, SPEC.action_dim),
        "reward": (),
        "terminal": (),
    }
    rng = np.random.default_rng(0)
    trajectory = Trajectory(
        **{name: jnp.asarray(rng.normal(size=(*batch, horizon, *s)), jnp.float32) for name, s in shapes.items()}
    )
    tokens = transforms.pack(trajectory)
    assert tokens.shape == (*batch, horizon, transforms.num_channels(SPEC))
    jax.tree.map(np.testing.assert_array_equal, transforms.unpack(tokens, SPEC), trajectory)


def test_order_of_the_channels_of_a_token():
    assert transforms.num_channels(SPEC) == 5 + 2 * 3 + 2 * 2 + 2
    assert transforms.obs_channels(SPEC) == slice(5, 11)
    assert transforms.action_channels(SPEC) == slice(11, 15)
    tokens = jnp.arange(17.0)[None]
    trajectory = transforms.unpack(tokens, SPEC)
    np.testing.assert_array_equal(trajectory.obs[0], [[5, 6, 7], [8, 9, 10]])
    np.testing.assert_array_equal(trajectory.action[0], [[11, 12], [13, 14]])
    assert (trajectory.reward[0], trajectory.terminal[0]) == (15.0, 16.0)
