import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coda_jax.marl.actor_critic import td_targets
from coda_jax.marl.cloning import cloning_policy_loss
from coda_jax.marl.critics import actor_joint_actions, brud_joint_actions
from coda_jax.marl.input_scale import raw_inputs
from coda_jax.marl.learner import RowWeights, uniform_weights, unroll
from coda_jax.marl.maddpg_bc import MaddpgBcConfig, maddpg_bc
from coda_jax.marl.networks import Critic
from coda_jax.types import TaskSpec, Trajectory
from tests.marl.one_step_games import GAME, game_windows, train
from tests.marl.states import distance

TASK = TaskSpec(name="toy", num_agents=2, state_dim=3, obs_dim=4, action_dim=2, episode_length=10)
SMALL = MaddpgBcConfig(policy_linear_width=8, policy_hidden_width=8, critic_widths=(16, 16))
LEARNER = maddpg_bc(TASK, SMALL, raw_inputs(TASK))
INIT, WEIGHTED_UPDATE = jax.jit(LEARNER.init), jax.jit(LEARNER.update)
UNROLL = jax.jit(unroll, static_argnums=0)


def update(state, window, key):
    return WEIGHTED_UPDATE(state, window, uniform_weights(window.reward.shape[0]), key)


@functools.partial(jax.jit, static_argnums=(1, 2))
def random_windows(seed: int, batch: int = 5, horizon: int = 4) -> Trajectory:
    keys = jax.random.split(jax.random.key(seed), 5)
    return Trajectory(
        state=jax.random.normal(keys[0], (batch, horizon, TASK.state_dim)),
        obs=jax.random.normal(keys[1], (batch, horizon, TASK.num_agents, TASK.obs_dim)),
        action=jax.random.uniform(keys[2], (batch, horizon, TASK.num_agents, TASK.action_dim), minval=-1.0),
        reward=jax.random.normal(keys[3], (batch, horizon)),
        terminal=jax.random.bernoulli(keys[4], 0.3, (batch, horizon)).astype(jnp.float32),
    )


def token_weights(*shape) -> RowWeights:
    return RowWeights(critic=jnp.ones(shape), actor=jnp.ones(shape), cloning=jnp.ones(shape))


def policy_loss(q, state, mu, action, weights, alpha_bc, teammates="data"):
    """The policy's loss for a known critic."""
    value = q(state[..., None, :], actor_joint_actions(mu, action, teammates))
    return cloning_policy_loss(value, mu, action, weights, alpha_bc)


def each_critic(params, widths, state, action):
    """The values of both critics, each run on its own."""
    twins = params["params"]["VmapCritic_0"]
    return [
        np.asarray(jax.jit(Critic(widths).apply)({"params": jax.tree.map(lambda x, k=k: x[k], twins)}, state, action))
        for k in range(2)
    ]


# -- Targets -----------------------------------------------------------------------------------------------------------


def test_td_targets_stop_at_true_ends_only():
    reward = jnp.array([[1.0], [2.0], [3.0], [100.0]])  # the last token has no successor
    terminal = jnp.array([[0.0], [1.0], [0.0], [0.0]])  # a time limit after any token would leave its zero
    next_q = jnp.array([[10.0], [20.0], [30.0]])
    target, weights = td_targets(reward, terminal, next_q, 0.9)
    np.testing.assert_allclose(target[:3], [[10.0], [2.0], [30.0]], rtol=1e-6)
    np.testing.assert_array_equal(weights, [[1.0], [1.0], [1.0], [0.0]])


def test_the_last_token_counts_where_it_is_a_true_end():
    target, weights = td_targets(
        jnp.array([[1.0, 1.0], [5.0, 7.0]]), jnp.array([[0.0, 0.0], [1.0, 0.0]]), jnp.ones((1, 2)), 0.9
    )
    np.testing.assert_array_equal(weights, [[1.0, 1.0], [1.0, 0.0]])
    assert target[1, 0] == 5.0


@pytest.mark.parametrize("horizon", [2, 3, 7])
def test_over_all_windows_of_an_episode_its_true_end_weighs_as_much_as_a_step_in_the_middle(horizon):
    length = 20
    starts = np.arange(length - horizon + 1)
    steps = starts + np.arange(horizon)[:, None]  # [H, windows]
    terminal = jnp.asarray(steps == length - 1, jnp.float32)
    _, weights = td_targets(jnp.zeros(steps.shape), terminal, jnp.zeros((horizon - 1, len(starts))), 0.9)
    total = np.zeros(length)
    np.add.at(total, steps, np.asarray(weights))
    np.testing.assert_array_equal(total[horizon - 2 : length - horizon + 1], horizon - 1)
    assert total[-1] == horizon - 1


def test_a_game_of_one_step_needs_no_bootstrap():
    reward = jnp.array([[1.0, -2.0]])
    target, weights = td_targets(reward, jnp.zeros((1, 2)), jnp.zeros((0, 2)), 0.9)
    np.testing.assert_array_equal(target, reward)
    np.testing.assert_array_equal(weights, jnp.ones((1, 2)))


def test_losses_are_those_written_out():
    """Targets come from the target policy and critics, the policy's values from the online critics."""
    fresh = INIT(jax.random.key(0))
    other = INIT(jax.random.key(1))
    state = fresh.replace(target_policy=other.policy, target_critics=other.critics)
    window = random_windows(2)
    _, metrics = update(state, window, jax.random.key(3))

    target_mu = UNROLL(LEARNER, other, window.obs)
    errors = []
    q = each_critic(state.critics, SMALL.critic_widths, window.state, window.action)
    next_q = np.minimum(*each_critic(other.critics, SMALL.critic_widths, window.state, target_mu))
    for b in range(5):
        for t in range(4):
            target = window.reward[b, t]
            if not window.terminal[b, t]:
                if t == 3:
                    continue  # what follows is unknown
                target = target + 0.99 * next_q[b, t + 1]
            errors += [q[k][b, t] - target for k in range(2)] * (3 if t == 3 else 1)  # the only window with that end
    assert 2 * 5 * 3 < len(errors) < 2 * 5 * 6
    np.testing.assert_allclose(metrics["critic_loss"], 0.5 * np.mean(np.square(errors)), rtol=1e-5)

    mu = UNROLL(LEARNER, state, window.obs)
    policy_q = [
        np.minimum(
            *each_critic(state.critics, SMALL.critic_widths, window.state, window.action.at[:, :, i].set(mu[:, :, i]))
        )
        for i in range(TASK.num_agents)
    ]
    bc_loss = np.mean(np.square(mu - window.action))
    np.testing.assert_allclose(metrics["policy_q"], np.mean(policy_q), rtol=1e-5)
    expected = -2.5 * np.mean(policy_q) / np.mean(np.abs(policy_q)) + bc_loss
    np.testing.assert_allclose(metrics["policy_loss"], expected, rtol=1e-5)


def test_a_last_token_that_is_no_end_serves_the_critics_as_next_state_only():
    state, window = INIT(jax.random.key(0)), random_windows(1)
    window = window.replace(terminal=jnp.zeros_like(window.terminal))
    expected = update(state, window, jax.random.key(2))[0].critics
    altered = window.replace(reward=window.reward.at[:, -1].set(7.0), action=window.action.at[:, -1].set(0.3))
    assert distance(update(state, altered, jax.random.key(2))[0].critics, expected) == 0
    moved = window.replace(state=window.state.at[:, -1].add(1.0))
    assert distance(update(state, moved, jax.random.key(2))[0].critics, expected) > 0
    ended = window.replace(terminal=window.terminal.at[0, -1].set(1.0))
    assert distance(update(state, ended, jax.random.key(2))[0].critics, expected) > 0


# -- Best response under data ------------------------------------------------------------------------------------------


def test_brud_joint_actions_take_only_the_own_action_from_the_policy():
    mu, action = jnp.arange(6.0).reshape(3, 2), -1.0 - jnp.arange(6.0).reshape(3, 2)
    joint = brud_joint_actions(mu, action)
    for i in range(3):
        for j in range(3):
            np.testing.assert_array_equal(joint[i, j], mu[j] if i == j else action[j])


def test_no_agent_is_updated_through_anothers_value():
    """dQ_i / dmu^j = 0 for i != j: a critic sees the current actions of one agent at a time."""
    action = jax.random.normal(jax.random.key(0), (3, 2))
    values = lambda mu: jnp.prod(jnp.sum(brud_joint_actions(mu, action), axis=-1), axis=-1)  # noqa: E731
    jacobian = np.abs(jax.jit(jax.jacobian(values))(action + 1.0)).sum(axis=-1)  # [i, j]
    assert np.all(np.diag(jacobian) > 1e-3)
    np.testing.assert_array_equal(jacobian - np.diag(np.diag(jacobian)), 0)


def multiplication(_, joint_action):
    return joint_action[..., 0, 0] * joint_action[..., 1, 0]


def twin_peaks(_, joint_action):
    x, y = joint_action[..., 0, 0], joint_action[..., 1, 0]
    return -0.5 * (x**2 + y**2) - 0.25 * (x * y) ** 2 + 2.0 * x * y


def twin_peaks_gradient(theta, action):
    """Eq. 22-23 with A = 0.5, B = 0.25, C = 2."""
    mean, square = action.mean(axis=0)[::-1], np.square(action).mean(axis=0)[::-1]
    return -theta - 0.5 * theta * square + 2.0 * mean


@settings(max_examples=10)
@given(theta=st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)))
@pytest.mark.parametrize(
    ("game", "brud_gradient"),
    [(multiplication, lambda theta, action: action.mean(axis=0)[::-1]), (twin_peaks, twin_peaks_gradient)],  # Eq. 20
)
def test_policy_gradient_is_the_closed_form_of_appendix_c(game, brud_gradient, theta):
    """Policies that are constants theta, a critic that is the game's reward."""
    action = np.random.default_rng(0).uniform(-0.5, 1.0, (64, 2)).astype(np.float32)
    theta, alpha_bc = np.array(theta, np.float32), 1.5

    def loss(theta):
        mu = jnp.broadcast_to(theta[None, :, None], (64, 2, 1))
        action_ = jnp.asarray(action)[..., None]
        return policy_loss(game, jnp.zeros((64, 1)), mu, action_, uniform_weights(64), alpha_bc)[0]

    own = np.stack([np.stack([np.full(64, theta[0]), action[:, 1]]), np.stack([action[:, 0], np.full(64, theta[1])])])
    mean_abs_q = np.abs(game(None, jnp.asarray(np.moveaxis(own, 1, 2)[..., None]))).mean()
    # Both terms are means over the two agents: a half each.
    expected = -alpha_bc / max(mean_abs_q, 1e-8) * brud_gradient(theta, action) / 2 + (theta - action.mean(axis=0))
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(theta)), expected, rtol=2e-4, atol=2e-5)


@settings(max_examples=10)
@given(theta=st.tuples(st.floats(-1, 1, width=32), st.floats(-1, 1, width=32)))
@pytest.mark.parametrize("game", [multiplication, twin_peaks])
def test_beside_current_teammates_the_gradient_is_the_true_one_whatever_the_data(game, theta):
    """Constant policies theta, a critic that is the game's reward: d Q(theta) / d theta, not the mean over the data."""
    action = np.random.default_rng(0).uniform(-0.5, 1.0, (64, 2, 1)).astype(np.float32)
    theta, alpha_bc = jnp.asarray(theta, jnp.float32), 1.5

    def loss(theta):
        mu = jnp.broadcast_to(theta[None, :, None], (64, 2, 1))
        weights = dataclasses.replace(uniform_weights(64), cloning=jnp.zeros(64))
        return policy_loss(game, jnp.zeros((64, 1)), mu, jnp.asarray(action), weights, alpha_bc, "current")[0]

    value, true_gradient = jax.value_and_grad(lambda theta: game(None, theta[:, None]))(theta)
    expected = -alpha_bc / max(abs(value), 1e-8) * true_gradient / 2  # a mean over the two agents
    np.testing.assert_allclose(jax.grad(loss)(theta), expected, rtol=2e-4, atol=2e-5)


def test_beside_current_teammates_too_no_agent_is_updated_through_anothers_value():
    mu, action = jax.random.normal(jax.random.key(0), (3, 2)), jnp.zeros((3, 2))
    values = lambda mu: jnp.prod(jnp.sum(actor_joint_actions(mu, action, "current"), axis=-1), axis=-1)  # noqa: E731
    np.testing.assert_allclose(values(mu), jnp.full(3, jnp.prod(jnp.sum(mu, axis=-1))), rtol=1e-6)
    jacobian = np.abs(jax.jit(jax.jacobian(values))(mu)).sum(axis=-1)
    assert np.all(np.diag(jacobian) > 1e-3)
    np.testing.assert_array_equal(jacobian - np.diag(np.diag(jacobian)), 0)


@pytest.mark.parametrize("offset", [5.0, -5.0])
def test_the_normaliser_does_not_cancel_the_gradient_when_all_values_share_a_sign(offset):
    action, mu = jnp.zeros((8, 2, 1)), jnp.full((8, 2, 1), 0.25)
    q = lambda _, joint: offset + jnp.sum(joint, axis=(-2, -1))  # noqa: E731
    loss = lambda mu: policy_loss(q, jnp.zeros((8, 1)), mu, action, uniform_weights(8), 2.5)[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(mu)
    # Each of the 16 values is offset + 1/4 with slope one; the cloning term's slope is 2 mu / 16.
    np.testing.assert_allclose(gradient, (-2.5 / abs(offset + 0.25) + 0.5) / 16, rtol=1e-5)


def test_the_scale_of_the_critic_does_not_matter():
    action, mu = random_windows(0).action, 0.5 * random_windows(1).action
    state, weights = random_windows(0).state, token_weights(5, 4)

    def loss(mu, scale):
        return policy_loss(lambda _, a: scale * jnp.sum(a**2, axis=(-2, -1)), state, mu, action, weights, 2.5)[0]

    gradients = [jax.jit(jax.grad(loss))(mu, scale) for scale in (1.0, 1000.0)]
    np.testing.assert_allclose(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)


def test_values_of_zero_leave_cloning():
    window = random_windows(0)
    loss, metrics = policy_loss(
        lambda s, a: jnp.zeros(a.shape[:-2]),
        window.state,
        0 * window.action,
        window.action,
        token_weights(5, 4),
        2.5,
    )
    np.testing.assert_allclose(loss, np.mean(np.square(window.action)), rtol=1e-6)
    np.testing.assert_allclose(metrics["bc_loss"], loss, rtol=1e-6)


# -- Updates -----------------------------------------------------------------------------------------------------------


def test_neither_loss_moves_the_others_network():
    window = random_windows(1)
    cloning = maddpg_bc(TASK, MaddpgBcConfig(**{**vars(SMALL), "alpha_bc": 0.0}), raw_inputs(TASK))
    state = INIT(jax.random.key(0))
    greedy_state, _ = update(state, window, jax.random.key(2))
    cloned_state, _ = jax.jit(cloning.update)(state, window, uniform_weights(5), jax.random.key(2))
    assert distance(greedy_state.critics, cloned_state.critics) == 0
    assert distance(greedy_state.policy, cloned_state.policy) > 0
    paid_more, _ = update(state, window.replace(reward=window.reward + 5.0), jax.random.key(2))
    assert distance(paid_more.policy, greedy_state.policy) == 0  # the policy loss uses the critics before the step
    assert distance(paid_more.critics, greedy_state.critics) > 0


def test_targets_follow_by_the_soft_recursion():
    state = INIT(jax.random.key(0))
    buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(state)]
    assert len(set(buffers)) == len(buffers)  # none shared, or the state could not be donated
    assert distance(state.target_policy, state.policy) == 0
    assert distance(state.target_critics, state.critics) == 0
    for k in range(3):
        after, _ = update(state, random_windows(k), jax.random.key(k))
        for name in ("policy", "critics"):
            online, target, before = (
                getattr(*pair) for pair in ((after, name), (after, f"target_{name}"), (state, f"target_{name}"))
            )
            expected = jax.tree.map(lambda old, new: 0.995 * old + 0.005 * new, before, online)
            assert distance(online, before) > 1e-4
            assert distance(target, expected) < 1e-7
        state = after


def test_decaying_steps_are_the_cosines_share_of_constant_ones():
    decaying = maddpg_bc(TASK, dataclasses.replace(SMALL, decay_updates=4), raw_inputs(TASK))
    decaying_update, constant = jax.jit(decaying.update), INIT(jax.random.key(0))
    state = decaying.init(jax.random.key(0))
    for k in range(6):
        # The same weights and moments, with the constant optimiser's own state, which is empty.
        same = {name: getattr(state, name) for name in ("policy", "critics", "target_policy", "target_critics")}
        moments = {
            name: (getattr(state, name)[0], getattr(constant, name)[1])
            for name in ("policy_optimizer", "critic_optimizer")
        }
        whole, _ = update(dataclasses.replace(constant, **same, **moments), random_windows(k), jax.random.key(k))
        after, _ = decaying_update(state, random_windows(k), uniform_weights(5), jax.random.key(k))
        share = 0.5 * (1.0 + np.cos(np.pi * min(k, 4) / 4))
        for name in ("policy", "critics"):
            before, now, then = (getattr(each, name) for each in (state, after, whole))
            expected = jax.tree.map(lambda old, new, share=share: old + share * (new - old), before, then)
            assert distance(then, before) > 1e-5
            assert distance(now, expected) < 1e-7
        state = after


def test_the_order_of_windows_does_not_matter():
    state, window = INIT(jax.random.key(0)), random_windows(1)
    shuffled = jax.tree.map(lambda x: x[jnp.array([3, 0, 4, 1, 2])], window)
    _, metrics = update(state, window, jax.random.key(2))
    _, metrics_shuffled = update(state, shuffled, jax.random.key(2))
    for name, value in metrics.items():
        np.testing.assert_allclose(metrics_shuffled[name], value, rtol=1e-5)


@pytest.mark.slow
def test_seeds_vmapped_equal_the_same_seeds_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    windows = [random_windows(k) for k in range(4)]
    vmapped = jax.jit(jax.vmap(LEARNER.update, in_axes=(0, None, None, 0)), donate_argnums=0)
    together = jax.jit(jax.vmap(LEARNER.init))(keys)
    alone = [INIT(jax.random.clone(key)) for key in keys]
    for k, window in enumerate(windows):
        step_keys = jax.random.split(jax.random.key(10 + k), 3)
        together, metrics = vmapped(together, window, uniform_weights(5), step_keys)
        alone = [update(state, window, jax.random.clone(key))[0] for state, key in zip(alone, step_keys, strict=True)]
    assert all(value.shape == (3,) for value in metrics.values())
    for seed, state in enumerate(alone):
        assert distance(jax.tree.map(lambda x, seed=seed: x[seed], together), state) < 1e-5
    assert distance(alone[0], alone[1]) > 1e-2


def test_acting_step_by_step_is_the_policy_that_cloning_compares_with_the_data():
    state, window = INIT(jax.random.key(0)), random_windows(1)
    act = jax.jit(LEARNER.act)
    for _ in range(2):  # a second episode starts from an empty memory again
        carry, squared = LEARNER.initial_carry((5,)), []
        for t in range(4):
            action, carry = act(state, window.obs[:, t], carry)
            squared.append(np.square(action - window.action[:, t]))
        _, metrics = update(state, window, jax.random.key(2))
        np.testing.assert_allclose(np.mean(squared), metrics["bc_loss"], rtol=1e-5)


# -- Weights of rows ---------------------------------------------------------------------------------------------------

TERMS = ("critic", "actor", "cloning")
LOSSES = ("critic_loss", "policy_q", "bc_loss")


def weights_of(**given) -> RowWeights:
    """Weights `[5]`, ones in the terms not given."""
    return RowWeights(**{term: jnp.asarray(given.get(term, np.ones(5)), jnp.float32) for term in TERMS})


def rows(window, *index) -> Trajectory:
    return jax.tree.map(lambda x: x[jnp.asarray(index)], window)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_weights_repeat_rows_and_their_scale_does_not_matter(scale):
    """Row 0 twice, rows 1 and 3 never, rows 2 and 4 once: the update of the batch (0, 0, 2, 4)."""
    state, window = INIT(jax.random.key(0)), random_windows(1)
    weight = scale * np.array([2, 0, 1, 0, 1])
    after, metrics = WEIGHTED_UPDATE(
        state, window, weights_of(critic=weight, actor=weight, cloning=3.0 * weight), jax.random.key(2)
    )
    expected, expected_metrics = update(state, rows(window, 0, 0, 2, 4), jax.random.key(2))
    assert distance(after, expected) < 2e-6
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected_metrics[name], rtol=1e-5)


@pytest.mark.parametrize(("term", "loss"), list(zip(TERMS, LOSSES, strict=True)))
def test_a_row_without_weight_in_a_term_has_no_influence_on_that_term_alone(term, loss):
    state, window = INIT(jax.random.key(0)), random_windows(1)
    other = jax.tree.map(lambda x, y: x.at[3].set(y[3]), window, random_windows(2))
    for present in (0.0, 1.0):
        weights = weights_of(**{term: [1, 1, 1, present, 1]})
        metrics, altered = (WEIGHTED_UPDATE(state, data, weights, jax.random.key(2))[1] for data in (window, other))
        assert (metrics[loss] == altered[loss]) == (present == 0.0)
        assert all(metrics[name] != altered[name] for name in LOSSES if name != loss)


def test_a_row_without_weight_moves_neither_network():
    state, window = INIT(jax.random.key(0)), random_windows(1)
    other = jax.tree.map(lambda x, y: x.at[3].set(y[3]), window, random_windows(2))
    present = [1, 1, 1, 0, 1]
    for network, weights in {
        "critics": weights_of(critic=present),
        "policy": weights_of(actor=present, cloning=present),
    }.items():
        one, two = (WEIGHTED_UPDATE(state, data, weights, jax.random.key(2))[0] for data in (window, other))
        assert distance(getattr(one, network), getattr(two, network)) == 0
        assert distance(one, two) > 0


def test_terms_without_any_weight_leave_the_networks_as_they_are():
    state, window = INIT(jax.random.key(0)), random_windows(1)
    nothing = np.zeros(5)
    after, metrics = WEIGHTED_UPDATE(
        state, window, weights_of(critic=nothing, actor=nothing, cloning=nothing), jax.random.key(2)
    )
    assert distance((after.policy, after.critics), (state.policy, state.critics)) == 0
    assert all(value == 0.0 for value in metrics.values())


def test_the_normaliser_is_that_of_the_actors_rows():
    """Q is 1 on the first row and 100 on the second, with slopes alike: the first row's gradient is alpha / 1."""
    level, action, mu = jnp.asarray([[1.0], [100.0]]), jnp.zeros((2, 2, 1)), jnp.zeros((2, 2, 1))

    def gradient(actor):
        weights = RowWeights(critic=jnp.ones(2), actor=jnp.asarray(actor), cloning=jnp.zeros(2))
        q = lambda state, joint: state[..., 0] + jnp.sum(joint, axis=(-2, -1))  # noqa: E731
        return jax.jit(jax.grad(lambda mu: policy_loss(q, level, mu, action, weights, 2.5)[0]))(mu)[..., 0]

    np.testing.assert_allclose(gradient([1.0, 0.0]), [[-1.25, -1.25], [0.0, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(gradient([0.0, 1.0]), [[0.0, 0.0], [-0.0125, -0.0125]], rtol=1e-6)


# -- Games with known answers ------------------------------------------------------------------------------------------


GAME_CONFIG = MaddpgBcConfig(
    critic_learning_rate=3e-3,
    policy_learning_rate=3e-3,
    target_rate=0.05,
    discount=0.5,
    policy_linear_width=8,
    policy_hidden_width=8,
    critic_widths=(32, 32),
)


@pytest.mark.parametrize(("teammates", "ends"), [("data", (-1.0, 1.0)), ("current", (-1.0, -1.0))])
def test_current_teammates_coordinate_where_a_best_response_under_data_does_not(teammates, ends):
    """The multiplication game with data around (0.4, -0.4) and policies that start at (-0.7, -0.2).

    The best response under data goes to (-1, 1); the true gradient leads both agents on to (-1, -1).
    """
    rng = np.random.default_rng(0)
    window = game_windows(np.clip(rng.normal((0.4, -0.4), 0.6, (128, 1, 2)), -1, 1))
    config = MaddpgBcConfig(**{**vars(GAME_CONFIG), "alpha_bc": 20.0, "actor_teammates": teammates})
    learner = maddpg_bc(GAME, config, raw_inputs(GAME))
    ones, zeros = jnp.ones(128), jnp.zeros(128)

    def train_on(state, window, weights, num_updates):
        def step(state, _):
            return learner.update(state, window, weights, jax.random.key(1))[0], None

        return jax.lax.scan(step, state, None, num_updates)[0]

    @jax.jit
    def run(state):
        start = game_windows(np.broadcast_to([-0.7, -0.2], (128, 1, 2)))
        state = train_on(state, start, RowWeights(critic=zeros, actor=zeros, cloning=ones), 200)
        state = train_on(state, window, RowWeights(critic=ones, actor=zeros, cloning=zeros), 300)
        return train_on(state, window, RowWeights(critic=ones, actor=ones, cloning=zeros), 300)

    mu = UNROLL(learner, run(learner.init(jax.random.key(0))), jnp.zeros((1, 2, 1)))[0, :, 0]
    assert np.all(mu * np.array(ends) > 0.5)


def test_on_the_multiplication_game_critics_learn_the_reward_and_policies_drift_as_equation_20_says():
    """Data around (0.4, -0.4) send x along -0.4 and y along +0.4 until both saturate, near the worst corner (-1, 1)."""
    rng = np.random.default_rng(0)
    action = np.clip(rng.normal((0.4, -0.4), 0.6, (128, 1, 2)), -1, 1)
    learner = maddpg_bc(GAME, MaddpgBcConfig(**{**vars(GAME_CONFIG), "alpha_bc": 20.0}), raw_inputs(GAME))
    state, metrics = train(learner, 0, game_windows(action), 500)
    assert all(np.all(np.isfinite(value)) for value in metrics.values())

    unseen = np.clip(rng.normal((0.4, -0.4), 0.4, (100, 2)), -1, 1)
    for q in each_critic(state.critics, (32, 32), jnp.zeros((100, 1)), jnp.asarray(unseen, jnp.float32)[..., None]):
        assert np.sqrt(np.mean((q - unseen[:, 0] * unseen[:, 1]) ** 2)) < 0.03
    mu = UNROLL(learner, state, jnp.zeros((1, 2, 1)))[0, :, 0]
    assert mu[0] < -0.8 and mu[1] > 0.8


@pytest.mark.parametrize(("ends", "tokens"), [(True, 3), (True, 2), (False, 3)])
def test_on_a_game_of_two_steps_critics_learn_what_the_policies_will_earn(ends, tokens):
    """Rewards a_x + a_y at s = 0, then 1 + a_x a_y at s = 1, which ends the episode or repeats itself for ever.

    Pure cloning takes the policies to the data's means m, so Q*(0, a) = a_x + a_y + gamma V(1), with
    V(1) = 1 + m_x m_y where the game ends and (1 + m_x m_y) / (1 - gamma) where only a time limit cuts it.
    Recorded windows end with the game: they have two tokens.
    """
    rng = np.random.default_rng(0)
    half = rng.uniform(-0.4, 0.4, (32, 3, 2))
    mean = np.array([0.5, -0.3])
    action = mean + np.concatenate([half, -half])
    state = np.broadcast_to([0.0, 1.0, 1.0], (64, 3))
    reward = np.where(state == 0, action.sum(-1), 1 + action.prod(-1))
    terminal = np.broadcast_to([0.0, float(ends), 0.0], (64, 3))
    learner = maddpg_bc(GAME, MaddpgBcConfig(**{**vars(GAME_CONFIG), "alpha_bc": 0.0}), raw_inputs(GAME))
    windows = jax.tree.map(lambda leaf: leaf[:, :tokens], game_windows(action, state, reward, terminal))
    trained, _ = train(learner, 0, windows, 600)

    mu = UNROLL(learner, trained, jnp.array([0.0, 1.0, 1.0])[:, None, None] * jnp.ones((3, 2, 1)))
    np.testing.assert_allclose(mu[:tokens, :, 0], np.broadcast_to(mean, (tokens, 2)), atol=0.02)
    next_value = 1 + mean.prod()
    if not ends:
        next_value /= 1 - 0.5
    probe = mean + rng.uniform(-0.3, 0.3, (50, 2))
    for q in each_critic(trained.critics, (32, 32), jnp.zeros((50, 1)), jnp.asarray(probe, jnp.float32)[..., None]):
        np.testing.assert_allclose(q, probe.sum(-1) + 0.5 * next_value, atol=0.05)


def test_cloning_learns_what_needs_memory():
    """The data repeat the previous observation, and answer 0.5 at a window's first token."""
    rng = np.random.default_rng(0)
    seen = rng.choice([-0.7, 0.7], (64, 5))
    previous = np.concatenate([np.full((64, 1), 0.5), seen[:, :-1]], axis=1)
    action = np.stack([previous, -previous], axis=-1)
    learner = maddpg_bc(
        GAME, MaddpgBcConfig(**{**vars(GAME_CONFIG), "alpha_bc": 0.0, "policy_learning_rate": 1e-2}), raw_inputs(GAME)
    )
    _, metrics = train(learner, 0, game_windows(action, seen), 300)
    assert metrics["bc_loss"][-1] < 2e-3  # blind to the past it could not fall below 0.8 * 0.49
