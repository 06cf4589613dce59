import errno
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments.host.checkpoints import KEPT, Checkpoints, open_cached
from experiments.host.errors import UserError
from experiments.host.run_folder import Metrics


@pytest.fixture
def series(tmp_path):
    opened = Checkpoints(tmp_path / "train")
    yield opened
    opened.close()


@chex.dataclass(frozen=True)
class Carry:
    params: dict[str, jax.Array]
    optimizer: optax.OptState
    key: jax.Array
    round: jax.Array
    empty: jax.Array


def make_carry(mesh: jax.sharding.Mesh, seed: int) -> Carry:
    """Four seeds' state, sharded over the mesh, with a replicated counter."""
    params = {"w": jax.random.normal(jax.random.key(seed), (4, 3, 2)), "b": jnp.full((4, 2), seed, jnp.float32)}
    carry = Carry(
        params=params,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)).init(params),
        key=jax.random.split(jax.random.key(seed + 1), 4),
        round=jnp.int32(seed),
        empty=jnp.zeros((4, 0)),  # like MJX's actuator state; Orbax cannot store empty arrays
    )
    by_seed, replicated = NamedSharding(mesh, PartitionSpec("seed")), NamedSharding(mesh, PartitionSpec())
    return jax.device_put(carry, jax.tree.map(lambda x: by_seed if x.ndim else replicated, carry))


def raw(tree):
    """The tree with the bits of its keys, which compare like other arrays."""
    return jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, tree
    )


@pytest.fixture
def mesh():
    return jax.make_mesh((2,), ("seed",), axis_types=(AxisType.Auto,))


def test_a_carry_is_restored_bit_for_bit_with_its_sharding(series, mesh):
    carry = make_carry(mesh, 3)
    series.save(3, carry, {"seconds": 1.5})
    restored = series.restore(make_carry(mesh, 0))
    assert (restored.step, restored.notes) == (3, {"seconds": 1.5})
    assert isinstance(restored.tree, Carry)
    assert jax.tree.structure(restored.tree) == jax.tree.structure(carry)
    assert restored.tree.key.dtype == carry.key.dtype
    chex.assert_trees_all_equal(raw(restored.tree), raw(carry))
    chex.assert_trees_all_equal_shapes_and_dtypes(raw(restored.tree), raw(carry))
    for before, after in zip(jax.tree.leaves(carry), jax.tree.leaves(restored.tree), strict=True):
        assert after.sharding == before.sharding and after.committed == before.committed


def test_a_restored_carry_is_donated_and_compiles_nothing_new(series, mesh):
    step = jax.jit(lambda carry: carry.replace(round=carry.round + 1), donate_argnums=0)
    series.save(0, make_carry(mesh, 0))
    first = step(make_carry(mesh, 0))
    restored = series.restore(make_carry(mesh, 0)).tree
    again = step(restored)
    assert step._cache_size() == 1
    assert restored.params["w"].is_deleted()
    chex.assert_trees_all_equal(raw(again), raw(first))


def test_another_number_of_devices_restores_the_same_numbers(series, mesh):
    carry = make_carry(mesh, 1)
    series.save(1, carry)
    alone = jax.make_mesh((1,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    restored = series.restore(make_carry(alone, 0)).tree
    assert restored.params["w"].sharding.num_devices == 1
    chex.assert_trees_all_equal(raw(jax.device_get(restored)), raw(jax.device_get(carry)))


def test_nothing_saved_is_none(series):
    assert series.restore({"x": jnp.zeros(1)}) is None


def test_the_latest_is_restored_and_few_are_kept(series, tmp_path):
    for step in range(1, 5):
        series.save(step, {"x": jnp.full(2, step)})
    assert series.restore({"x": jnp.zeros(2, jnp.int32)}).step == 4
    assert sorted(file.name for file in (tmp_path / "train").glob("*.json")) == ["3.json", "4.json"]
    assert len(list((tmp_path / "train" / "steps").iterdir())) == KEPT


def test_series_are_independent(series, tmp_path):
    other = Checkpoints(tmp_path / "fit")
    other.save(10, {"x": jnp.ones(1)})
    assert series.restore({"x": jnp.zeros(1)}) is None
    other.close()


def flip_a_bit(folder: Path):
    """Flips a bit in the middle of the largest file: array data without other checksums."""
    file = max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_flipped_bit_is_detected_and_the_previous_checkpoint_restored(series, tmp_path, capsys):
    for step in (1, 2):
        series.save(step, {"x": jnp.full(1000, step)})
    flip_a_bit(tmp_path / "train" / "steps" / "2")
    template = {"x": jnp.zeros(1000, jnp.int32)}
    restored = series.restore(template)
    assert restored.step == 1
    chex.assert_trees_all_equal(restored.tree["x"], jnp.full(1000, 1))
    assert "steps/2 is damaged" in capsys.readouterr().err
    series.save(2, {"x": jnp.full(1000, 2)})  # the damaged one is out of the way
    assert series.restore(template).step == 2


@pytest.mark.parametrize("damage", ["bit", "missing file", "missing folder", "record", "list", "notes"])
def test_without_intact_checkpoints_the_user_must_decide(series, tmp_path, damage):
    series.save(1, {"x": jnp.arange(1000)}, {"seconds": 1.5})
    step = tmp_path / "train" / "steps" / "1"
    if damage == "bit":
        flip_a_bit(step)
    elif damage == "missing file":
        next(path for path in step.rglob("*") if path.is_file()).unlink()
    elif damage == "missing folder":
        shutil.rmtree(step)
    else:
        record = tmp_path / "train" / "1.json"
        record.write_text({"record": "{", "list": "[]", "notes": record.read_text().replace("1.5", "1.7")}[damage])
    for _ in range(2):  # nor does the second attempt start over silently
        with pytest.raises(UserError, match=r"no checkpoint in .* is intact; delete"):
            series.restore({"x": jnp.zeros(1000, jnp.int32)})


def test_records_of_older_versions_have_no_digest(series, tmp_path):
    series.save(1, {"x": jnp.arange(10)}, {"seconds": 1.5})
    record = tmp_path / "train" / "1.json"
    record.write_text(record.read_text().rpartition("\n")[0])
    assert series.restore({"x": jnp.zeros(10, jnp.int32)}).notes == {"seconds": 1.5}


def test_a_damaged_series_of_the_cache_heals(series, tmp_path, capsys):
    series.save(1, {"x": jnp.arange(1000)})
    entry, template = tmp_path / "train", {"x": jnp.zeros(1000, jnp.int32)}
    flip_a_bit(entry / "steps" / "1")
    opened, restored = open_cached(entry, template)
    assert restored is None
    (line,) = capsys.readouterr().err.splitlines()
    assert str(entry) in line and "cache" in line and "run folder" not in line
    opened.save(1, {"x": jnp.arange(1000)})
    opened.close()
    again, restored = open_cached(entry, template)
    again.close()
    chex.assert_trees_all_equal(restored.tree["x"], jnp.arange(1000))
    assert capsys.readouterr().err == ""
    assert (tmp_path / ".train.damaged" / "1.json").exists()


def test_a_full_disk_is_noticed_before_threads_write(series, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    series.save(1, {"x": jnp.arange(1000)})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="steps") as error:
        patch.setattr(os, "posix_fallocate", full)
        series.save(2, {"x": jnp.arange(1000)})
    assert error.value.errno == errno.ENOSPC
    assert [path.name for path in (tmp_path / "train" / "steps").iterdir()] == ["1"]
    series.save(2, {"x": jnp.arange(1000)})


def test_a_step_without_its_record_was_never_saved(series, tmp_path):
    for step in (1, 2):
        series.save(step, {"x": jnp.full(2, step)})
    (tmp_path / "train" / "2.json").unlink()  # killed between the two
    again = Checkpoints(tmp_path / "train")
    assert again.restore({"x": jnp.zeros(2, jnp.int32)}).step == 1
    again.save(2, {"x": jnp.full(2, 2)})
    again.close()


ENDLESS_RUN = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from experiments.host.checkpoints import Checkpoints
from experiments.host.run_folder import Metrics

folder = Path(sys.argv[1])
metrics, train = Metrics(folder / "metrics.csv"), Checkpoints(folder / "train")
restored = train.restore({"x": jnp.zeros(100_000, jnp.int32), "key": jax.random.key(0)})
start = 0 if restored is None else restored.step
metrics.restore("" if restored is None else restored.notes["metrics"])
for step in range(start + 1, 10_000):
    metrics.append(step, [0, 1], {"return": jnp.full(2, float(step))})
    notes = {"step": step, "metrics": metrics.text}
    train.save(step, {"x": jnp.full(100_000, step), "key": jax.random.key(step)}, notes)
    print(step, flush=True)
"""


def test_a_run_can_be_resumed_after_sigkill_at_any_time(tmp_path):
    reached = 0
    for delay in (0.02, 0.05):
        with subprocess.Popen(
            [sys.executable, "-c", ENDLESS_RUN, tmp_path], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(4):
                assert int(process.stdout.readline()) > reached
            time.sleep(delay)  # into the next save
            process.kill()

        train, metrics = Checkpoints(tmp_path / "train"), Metrics(tmp_path / "metrics.csv")
        restored = train.restore({"x": jnp.zeros(100_000, jnp.int32), "key": jax.random.key(0)})
        step = 0 if restored is None else restored.step
        if restored is not None:
            assert restored.notes["step"] == step
            chex.assert_trees_all_equal(restored.tree["x"], jnp.full(100_000, step))
            chex.assert_trees_all_equal(raw(restored.tree["key"]), jax.random.key_data(jax.random.key(step)))
            metrics.restore(restored.notes["metrics"])
        train.close()
        rows = metrics.read()
        assert rows.get("round", jnp.zeros(0)).tolist() == [r for r in range(1, step + 1) for _ in range(2)]
        assert step >= reached + 4
        reached = step
